// Mouse, pen, fingers and keys on the image: move, zoom, paint, measure.

import { ADD, REMOVE } from "./mask.js";
import { sayArea } from "./panel.js";
import { answerOf, changed, say, state } from "./state.js";
import { cursor, fit, pan, reveal, toImage, view, zoom } from "./view.js";

const fingers = new Map(); // pointerId -> {x, y}
let stroke = null; // {answer, last} while painting
let ruler = null; // the ruler being drawn
let penDown = false; // the keyboard's brush

/** The answer that corrections go to, or null with the reason said. */
function target() {
  const layer = state.selected;
  if (!layer) return complain("Type a prompt first: the brush corrects its mask.");
  layer.visible = true;
  const answer = answerOf(layer);
  if (answer.status !== "ready") return complain(`${layer.prompt}: there is no mask yet to correct.`);
  return answer;
}

function complain(text) {
  say(text, "warn");
  return null;
}

function beginStroke(at) {
  const answer = target();
  if (!answer) return;
  answer.begin();
  stroke = { answer, last: at };
  paintTo(at);
}

function paintTo(at) {
  stroke.answer.dab(stroke.last, at, state.brush, state.tool === "brush" ? ADD : REMOVE);
  stroke.last = at;
}

function endStroke() {
  const answer = stroke?.answer;
  stroke = null;
  if (!answer) return;
  answer.end();
  sayArea(answer.layer);
}

function dropStroke() {
  const answer = stroke?.answer;
  stroke = null;
  answer?.end();
  if (answer?.undo()) answer.undone = [];
}

function local(canvas, event) {
  const box = canvas.getBoundingClientRect();
  return { x: event.clientX - box.left, y: event.clientY - box.top };
}

function pinch(canvas, event) {
  const other = [...fingers].find(([id]) => id !== event.pointerId)[1];
  const before = fingers.get(event.pointerId);
  const now = local(canvas, event);
  const apart = (p) => Math.hypot(p.x - other.x, p.y - other.y) || 1;
  const middle = (p) => ({ x: (p.x + other.x) / 2, y: (p.y + other.y) / 2 });
  zoom(apart(now) / apart(before), middle(before));
  pan(middle(now).x - middle(before).x, middle(now).y - middle(before).y);
}

/** Makes a pane's canvas answer to pointers and keys. */
export function listen(canvas, index) {
  let moving = false;
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button > 1) return;
    if (event.button === 1) event.preventDefault();
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, local(canvas, event));
    state.active = index;
    Object.assign(cursor, { at: toImage(canvas, event), pane: index, keyboard: false });
    view.resting = false;
    if (fingers.size === 2) {
      dropStroke();
      if (ruler) state.rulers.splice(state.rulers.indexOf(ruler), 1);
      ruler = null;
    } else if (fingers.size === 1) {
      moving = event.button === 1 || state.tool === "hand";
      if (!moving && state.tool === "ruler") state.rulers.push((ruler = { a: cursor.at, b: cursor.at }));
      else if (!moving) beginStroke(cursor.at);
    }
    changed();
  });
  canvas.addEventListener("pointermove", (event) => {
    const before = fingers.get(event.pointerId);
    if (before) {
      const now = local(canvas, event);
      if (fingers.size === 2) pinch(canvas, event);
      else if (moving) pan(now.x - before.x, now.y - before.y);
      else if (ruler) ruler.b = toImage(canvas, event);
      else if (stroke) for (const each of event.getCoalescedEvents?.() ?? [event]) paintTo(toImage(canvas, each));
      if (stroke) paintTo(toImage(canvas, event));
      fingers.set(event.pointerId, now);
    }
    Object.assign(cursor, { at: toImage(canvas, event), pane: index, keyboard: false });
    changed();
  });
  const up = (event) => {
    if (!fingers.delete(event.pointerId)) return;
    view.resting = true;
    endStroke();
    if (ruler && Math.hypot(ruler.b.x - ruler.a.x, ruler.b.y - ruler.a.y) < 1) state.rulers.pop();
    ruler = null;
    if (event.pointerType === "touch") cursor.at = null;
    changed();
  };
  canvas.addEventListener("pointerup", up);
  canvas.addEventListener("pointercancel", up);
  canvas.addEventListener("pointerleave", () => {
    if (cursor.keyboard || fingers.size) return;
    cursor.at = null;
    changed();
  });
  canvas.addEventListener("dblclick", () => {
    if (state.tool !== "hand") return;
    fit();
    changed();
  });
  canvas.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      const lines = event.deltaMode === 1 ? 16 : event.deltaMode === 2 ? 400 : 1;
      zoom(Math.exp(-Math.max(-120, Math.min(120, event.deltaY * lines)) * (event.ctrlKey ? 0.01 : 0.0022)), local(canvas, event));
      changed();
    },
    { passive: false },
  );
  canvas.addEventListener("focus", () => {
    state.active = index;
    changed();
  });
  canvas.addEventListener("blur", () => {
    liftPen();
    if (cursor.keyboard) Object.assign(cursor, { at: null, keyboard: false });
    changed();
  });
  canvas.addEventListener("keydown", (event) => keys(event, index));
}

function liftPen() {
  if (penDown) endStroke();
  penDown = false;
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function keys(event, index) {
  if (event.ctrlKey || event.metaKey || event.altKey || !state.image) return;
  const arrow = ARROWS[event.key];
  const { width, height } = state.image;
  if (arrow && state.tool === "hand") {
    const step = event.shiftKey ? 160 : 40;
    pan(-arrow[0] * step, -arrow[1] * step);
  } else if (arrow) {
    const from = crosshair(index);
    const step = event.shiftKey ? 10 : 1;
    const to = {
      x: Math.min(width - 0.5, Math.max(0.5, from.x + arrow[0] * step)),
      y: Math.min(height - 0.5, Math.max(0.5, from.y + arrow[1] * step)),
    };
    cursor.at = to;
    if (penDown && stroke) paintTo(to);
    if (ruler) ruler.b = to;
    reveal(to);
  } else if (event.key === " " && state.tool !== "hand") act(crosshair(index));
  else if (event.key.toLowerCase() === "p" && (state.tool === "brush" || state.tool === "eraser")) {
    if (penDown) liftPen();
    else {
      beginStroke(crosshair(index));
      penDown = stroke !== null;
    }
    if (penDown || state.selected) say(penDown ? "The brush is down: the arrow keys paint." : "The brush is up.");
  } else if (event.key === "Escape") {
    liftPen();
    ruler = null;
    state.rulers = [];
  } else return;
  event.preventDefault();
  event.stopPropagation();
  changed();
}

/** The keyboard's crosshair; it begins in the middle of the image, on the centre of a pixel. */
function crosshair(index) {
  if (!cursor.at) cursor.at = { x: state.image.width / 2, y: state.image.height / 2 };
  Object.assign(cursor, { pane: index, keyboard: true });
  cursor.at = { x: Math.floor(cursor.at.x) + 0.5, y: Math.floor(cursor.at.y) + 0.5 };
  return cursor.at;
}

function act(at) {
  if (state.tool === "ruler") {
    if (ruler) ruler = null;
    else state.rulers.push((ruler = { a: at, b: at }));
    return;
  }
  liftPen();
  beginStroke(at);
  endStroke();
}
