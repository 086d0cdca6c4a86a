// What is drawn of one answer: the probability map, a threshold, and what a person corrected on top of it.
// A correction says "add" or "remove" for single pixels, so that the threshold can still move beneath it.

export const ADD = 1;
export const REMOVE = 2;
const LARGE = 6_000_000; // pixels; outlines of larger masks are drawn once the pointer rests

/** One prompt answered by one model on one frame. */
export class Answer {
  constructor(layer, model, frame) {
    this.layer = layer;
    this.model = model;
    this.frame = frame;
    this.status = "missing"; // missing | waiting | ready | failed
    this.error = null;
    this.saved = null; // the state that was saved, see the getter
    this.version = 0; // counts changes of the corrections
    this.clean();
  }

  /** Takes a probability map: data is uint8 (height * width), 255 meaning 1. */
  fill({ width, height, data }, threshold) {
    Object.assign(this, { width, height, data, own: threshold, status: "ready", error: null });
    this.clean();
  }

  clean() {
    this.edits = null; // uint8 (height * width) of 0, ADD and REMOVE once there is a correction
    this.done = []; // strokes
    this.undone = [];
    this.cut = null; // the mask is to be made anew
    this.stale = null; // or only in a box [x0, y0, x1, y1)
    this.counted = null;
  }

  get corrected() {
    return this.edits !== null && this.done.length > 0;
  }

  /** Names the mask as it was last made: other corrections or another threshold, another name. */
  get state() {
    return `${this.version} ${this.cut}`;
  }

  get unsaved() {
    return this.corrected && this.saved !== this.state;
  }

  /** The mask at a threshold in [0, 1]: uint8 (height * width) of 0 and 1, with the corrections. Foreground is above it. */
  mask(threshold) {
    const cut = Math.floor(threshold * 255 + 1e-6);
    const whole = this.cut !== cut;
    if (!whole && !this.stale) return this.bits;
    const { data, edits, width, height } = this;
    if (whole) {
      this.bits ??= new Uint8Array(data.length);
      this.bits.fill(0);
      this.area = 0;
    }
    const { bits } = this;
    const box = whole ? [0, 0, width, height] : this.stale;
    let { area } = this;
    for (let y = box[1]; y < box[3]; y++) {
      for (let i = y * width + box[0], end = y * width + box[2]; i < end; i++) {
        const bit = edits && edits[i] ? edits[i] & 1 : data[i] > cut ? 1 : 0;
        area += bit - bits[i];
        bits[i] = bit;
      }
    }
    Object.assign(this, { area, cut, stale: null, path: null, undrawn: around(this.undrawn, box) });
    if (whole) this.anchor = undefined; // while a stroke is painted the number stays where it is
    return bits;
  }

  /** Pixels that the corrections add and remove at a threshold; while a stroke is painted, as it was before. */
  changes(threshold) {
    this.mask(threshold);
    if (this.counted?.state === this.state || (this.counted && this.before)) return this.counted;
    let more = 0;
    let less = 0;
    const { data, edits, cut } = this;
    for (let i = 0; edits && i < edits.length; i++) {
      if (edits[i] === ADD && data[i] <= cut) more++;
      else if (edits[i] === REMOVE && data[i] > cut) less++;
    }
    this.counted = { state: this.state, more, less };
    return this.counted;
  }

  /** The outline along pixel edges, in image coordinates. */
  outline(threshold, resting = true) {
    const bits = this.mask(threshold);
    if (this.path) return this.path;
    if (!resting && bits.length > LARGE) return null;
    const { width: w, height: h } = this;
    const path = new Path2D();
    const open = new Int32Array(w + 1).fill(-1); // where the running vertical edge left of column x began
    for (let y = 0; y <= h; y++) {
      let start = -1;
      for (let x = 0; x <= w; x++) {
        const here = x < w && y < h ? bits[y * w + x] : 0;
        const up = x < w && y ? bits[(y - 1) * w + x] : 0;
        const left = x && y < h ? bits[y * w + x - 1] : 0;
        if (here !== up) {
          if (start < 0) start = x;
        } else if (start >= 0) {
          path.moveTo(start, y);
          path.lineTo(x, y);
          start = -1;
        }
        if (here !== left) {
          if (open[x] < 0) open[x] = y;
        } else if (open[x] >= 0) {
          path.moveTo(x, open[x]);
          path.lineTo(x, y);
          open[x] = -1;
        }
      }
    }
    this.path = path;
    return path;
  }

  /** A canvas of the image's size: the mask in one colour, or the probability as opacity. */
  overlay(threshold, rgb, heat) {
    const bits = this.mask(threshold);
    const wanted = `${rgb} ${heat}`;
    const { width } = this;
    const picture = (this.picture ??= new OffscreenCanvas(width, this.height));
    const box = this.drawn === wanted ? this.undrawn : [0, 0, width, this.height];
    if (box) {
      const [x0, y0, x1, y1] = box;
      const context = picture.getContext("2d");
      const image = context.createImageData(x1 - x0, y1 - y0);
      const out = new Uint32Array(image.data.buffer);
      const [r, g, b] = rgb;
      const colour = (b << 16) | (g << 8) | r; // canvas bytes are RGBA; every browser runs on little-endian machines
      let at = 0;
      for (let y = y0; y < y1; y++) {
        for (let i = y * width + x0, end = y * width + x1; i < end; i++) {
          out[at++] = heat ? ((this.data[i] << 24) | colour) >>> 0 : bits[i] ? (0xff000000 | colour) >>> 0 : 0;
        }
      }
      context.putImageData(image, x0, y0);
    }
    this.undrawn = null;
    this.drawn = wanted;
    return picture;
  }

  /** Where a label may stand: the middle of the widest run of the mask's middle row, in image coordinates, or null. */
  label(threshold) {
    const bits = this.mask(threshold);
    if (this.anchor !== undefined) return this.anchor;
    const { width: w, height: h } = this;
    let seen = 0;
    let row = 0;
    for (; row < h && seen * 2 < this.area; row++) for (let x = 0; x < w; x++) seen += bits[row * w + x];
    row = Math.max(0, row - 1);
    let best = null;
    for (let x = 0, start = -1; x <= w; x++) {
      const bit = x < w && bits[row * w + x];
      if (bit && start < 0) start = x;
      if (!bit && start >= 0) {
        if (!best || x - start > best.length) best = { x: (start + x) / 2, y: row + 0.5, length: x - start };
        start = -1;
      }
    }
    this.anchor = this.area ? best : null;
    return this.anchor;
  }

  // Corrections --------------------------------------------------------------------------------------------------

  /** Begins a stroke; dab() paints it; end() makes it one step of undo. */
  begin() {
    this.edits ??= new Uint8Array(this.data.length);
    this.before = this.edits.slice();
    this.touched = null;
  }

  /** Paints a disc of a diameter in pixels along a line of image coordinates; pixels whose centres it covers change. */
  dab(from, to, diameter, value) {
    const { width: w, height: h } = this;
    const radius = Math.max(diameter / 2, 0.5);
    const steps = Math.max(1, Math.ceil(Math.hypot(to.x - from.x, to.y - from.y) / Math.max(radius / 2, 0.5)));
    for (let s = 0; s <= steps; s++) {
      const cx = from.x + ((to.x - from.x) * s) / steps;
      const cy = from.y + ((to.y - from.y) * s) / steps;
      // The smallest brush is the one pixel beneath the pointer.
      const [x0, x1] = diameter <= 1 ? [Math.floor(cx), Math.floor(cx)] : [Math.floor(cx - radius), Math.ceil(cx + radius)];
      const [y0, y1] = diameter <= 1 ? [Math.floor(cy), Math.floor(cy)] : [Math.floor(cy - radius), Math.ceil(cy + radius)];
      for (let y = Math.max(0, y0); y <= Math.min(h - 1, y1); y++) {
        for (let x = Math.max(0, x0); x <= Math.min(w - 1, x1); x++) {
          if (diameter > 1 && (x + 0.5 - cx) ** 2 + (y + 0.5 - cy) ** 2 > radius * radius) continue;
          this.edits[y * w + x] = value;
        }
      }
      const box = [Math.max(0, x0), Math.max(0, y0), Math.min(w, x1 + 1), Math.min(h, y1 + 1)];
      if (box[0] >= box[2] || box[1] >= box[3]) continue; // beside the image
      this.touched = around(this.touched, box);
      this.stale = around(this.stale, box);
    }
  }

  end() {
    if (this.touched) {
      const [x0, y0, x1, y1] = this.touched;
      this.done.push({ x0, y0, x1, y1, before: this.cutOut(this.before), after: this.cutOut(this.edits) });
      this.undone = [];
      this.version++;
      this.anchor = undefined;
    }
    this.before = null;
  }

  cutOut(from) {
    const [x0, y0, x1, y1] = this.touched;
    const part = new Uint8Array((x1 - x0) * (y1 - y0));
    for (let y = y0; y < y1; y++) part.set(from.subarray(y * this.width + x0, y * this.width + x1), (y - y0) * (x1 - x0));
    return part;
  }

  step(from, to, side) {
    const stroke = from.pop();
    if (!stroke) return false;
    const { x0, y0, x1, y1 } = stroke;
    for (let y = y0; y < y1; y++) {
      this.edits.set(stroke[side].subarray((y - y0) * (x1 - x0), (y - y0 + 1) * (x1 - x0)), y * this.width + x0);
    }
    to.push(stroke);
    this.version++;
    this.stale = around(this.stale, [x0, y0, x1, y1]);
    this.anchor = undefined;
    return true;
  }

  undo() {
    return this.step(this.done, this.undone, "before");
  }

  redo() {
    return this.step(this.undone, this.done, "after");
  }
}

/** The smallest box [x0, y0, x1, y1) that holds two; null stands for none. */
function around(a, b) {
  if (!a) return b;
  return [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[2], b[2]), Math.max(a[3], b[3])];
}

/** Dice of two masks of 0 and 1; null where both are empty. */
export function dice(a, b) {
  let both = 0;
  let sum = 0;
  for (let i = 0; i < a.length; i++) {
    both += a[i] & b[i];
    sum += a[i] + b[i];
  }
  return sum ? (2 * both) / sum : null;
}

/** An area as text: mm² or cm² where the spacing [row_mm, column_mm] is known, else pixels. */
export function areaText(pixels, spacing) {
  if (!spacing) return `${pixels.toLocaleString("en")} px`;
  const mm2 = pixels * spacing[0] * spacing[1];
  if (mm2 >= 100) return `${(mm2 / 100).toFixed(2)} cm²`;
  return `${mm2 < 10 ? mm2.toFixed(2) : mm2.toFixed(1)} mm²`;
}

/** The distance of two points as text. */
export function lengthText(a, b, spacing) {
  const [row, column] = spacing ?? [1, 1];
  const length = Math.hypot((b.x - a.x) * column, (b.y - a.y) * row);
  return spacing ? `${length.toFixed(1)} mm` : `${length.toFixed(1)} px`;
}
