// Draws the image and its masks. All panes share one view: where an image pixel lies on the screen.

import { areaText, dice, lengthText } from "./mask.js";
import { PALETTE, answerOf, modelOf, panes, shown, state, thresholdOf } from "./state.js";

/** screen = image * scale + (x, y), in CSS pixels of a pane. fitted: follows the pane's size. */
export const view = { scale: 1, x: 0, y: 0, fitted: true, resting: true };
/** Where the pointer or the keyboard's crosshair is, in image coordinates; keyboard: drawn as a crosshair. */
export const cursor = { at: null, pane: 0, keyboard: false };

const MARGIN = 12;
const holder = document.getElementById("panes");
let canvases = [];

export function paneCanvases() {
  return canvases;
}

/** Makes as many panes as are wanted; made(canvas, index) prepares a new one. */
export function layOut(made) {
  const count = panes().length;
  while (holder.children.length > count) holder.lastElementChild.remove();
  while (holder.children.length < count) {
    const pane = document.createElement("div");
    pane.className = "pane";
    const canvas = document.createElement("canvas");
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "application");
    canvas.setAttribute("aria-roledescription", "image viewer");
    const caption = document.createElement("div");
    caption.className = "caption";
    pane.append(canvas, caption);
    holder.append(pane);
    made(canvas, holder.children.length - 1);
  }
  holder.dataset.count = count;
  canvases = [...holder.querySelectorAll("canvas")];
}

export function toImage(canvas, event) {
  const box = canvas.getBoundingClientRect();
  return { x: (event.clientX - box.left - view.x) / view.scale, y: (event.clientY - box.top - view.y) / view.scale };
}

export function fit() {
  view.fitted = true;
  const canvas = canvases[0];
  if (!canvas || !state.image) return;
  const { clientWidth: w, clientHeight: h } = canvas;
  const { width, height } = state.image;
  view.scale = Math.max(0.01, Math.min((w - 2 * MARGIN) / width, (h - 2 * MARGIN) / height));
  view.x = (w - width * view.scale) / 2;
  view.y = (h - height * view.scale) / 2;
}

/** Zooms by a factor about a point of the pane in CSS pixels, by default its middle. */
export function zoom(factor, point) {
  const canvas = canvases[0];
  if (!canvas) return;
  const at = point ?? { x: canvas.clientWidth / 2, y: canvas.clientHeight / 2 };
  const scale = Math.min(64, Math.max(0.02, view.scale * factor));
  const real = scale / view.scale;
  pan((at.x - view.x) * (1 - real), (at.y - view.y) * (1 - real));
  view.scale = scale;
}

export function pan(dx, dy) {
  view.fitted = false;
  view.x += dx;
  view.y += dy;
}

/** One image pixel on one pixel of the screen, in the middle. */
export function native() {
  zoom(1 / devicePixelRatio / view.scale);
  const ratio = devicePixelRatio;
  view.scale = 1 / ratio;
  view.x = Math.round(view.x * ratio) / ratio;
  view.y = Math.round(view.y * ratio) / ratio;
}

/** Brings a point of the image into the pane. */
export function reveal(point) {
  const canvas = canvases[0];
  const x = point.x * view.scale + view.x;
  const y = point.y * view.scale + view.y;
  const dx = x < 20 ? 20 - x : x > canvas.clientWidth - 20 ? canvas.clientWidth - 20 - x : 0;
  const dy = y < 20 ? 20 - y : y > canvas.clientHeight - 20 ? canvas.clientHeight - 20 - y : 0;
  if (dx || dy) pan(dx, dy);
}

function rgbText(layer, alpha = 1) {
  return `rgb(${PALETTE[layer.colour].rgb.join(" ")} / ${alpha})`;
}

/** Draws image and masks of a pane in image coordinates; unit is the length of a CSS pixel in them. */
export function paint(context, pane, unit, { resting = true, labels = true } = {}) {
  const { image, picture } = state;
  context.imageSmoothingEnabled = unit > 0.25 / devicePixelRatio; // enlarged four times or more, pixels are shown as such
  context.imageSmoothingQuality = resting ? "high" : "low";
  context.drawImage(picture, 0, 0, image.width, image.height);
  if (state.peek || state.pictured !== state.frame) return;
  const layers = shown().filter((one) => answerOf(one, pane).status === "ready");
  for (const layer of layers) {
    const answer = answerOf(layer, pane);
    const threshold = thresholdOf(layer, answer);
    if (state.style !== "outline") {
      const heat = state.style === "heat";
      context.globalAlpha = layer.opacity;
      context.imageSmoothingEnabled = unit > 1;
      context.drawImage(answer.overlay(threshold, PALETTE[layer.colour].rgb, heat), 0, 0);
      context.globalAlpha = 1;
    }
    const path = answer.outline(threshold, resting);
    if (!path || layer.opacity === 0) continue;
    context.lineCap = "square";
    context.lineWidth = 3.2 * unit;
    context.strokeStyle = "rgb(0 0 0 / 0.35)";
    context.stroke(path);
    context.lineWidth = (layer === state.selected ? 1.8 : 1.3) * unit;
    context.strokeStyle = rgbText(layer);
    context.stroke(path);
  }
  if (labels && layers.length > 1) for (const layer of layers) number(context, layer, answerOf(layer, pane), unit);
}

function number(context, layer, answer, unit) {
  const at = answer.label(thresholdOf(layer, answer));
  if (!at) return;
  context.fillStyle = "rgb(12 16 17 / 0.78)";
  context.beginPath();
  context.arc(at.x, at.y, 10 * unit, 0, 7);
  context.fill();
  context.font = `600 ${12 * unit}px sans-serif`;
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.fillStyle = "#fff";
  context.fillText(layer.number, at.x, at.y + 0.5 * unit);
}

function rulers(context, unit) {
  for (const { a, b } of state.rulers) {
    for (const [width, colour] of [[4, "rgb(0 0 0 / 0.55)"], [1.6, "#fff"]]) {
      context.lineWidth = width * unit;
      context.strokeStyle = colour;
      context.lineCap = "round";
      context.beginPath();
      context.moveTo(a.x, a.y);
      context.lineTo(b.x, b.y);
      const length = Math.hypot(b.x - a.x, b.y - a.y) || 1;
      const [nx, ny] = [(-(b.y - a.y) / length) * 5 * unit, ((b.x - a.x) / length) * 5 * unit];
      for (const end of [a, b]) {
        context.moveTo(end.x - nx, end.y - ny);
        context.lineTo(end.x + nx, end.y + ny);
      }
      context.stroke();
    }
    context.font = `600 ${13 * unit}px sans-serif`;
    context.textAlign = "center";
    context.textBaseline = "bottom";
    context.lineWidth = 3.5 * unit;
    context.lineJoin = "round";
    context.strokeStyle = "rgb(0 0 0 / 0.7)";
    context.fillStyle = "#fff";
    const at = [(a.x + b.x) / 2, Math.min(a.y, b.y) - 6 * unit];
    context.strokeText(lengthText(a, b, state.image.spacing), ...at);
    context.fillText(lengthText(a, b, state.image.spacing), ...at);
  }
}

function pointer(context, unit) {
  if (!cursor.at || state.tool === "hand") return;
  const { x, y } = cursor.at;
  context.lineWidth = 1 * unit;
  if (state.tool !== "ruler") {
    for (const [radius, colour] of [[state.brush / 2 + unit, "rgb(0 0 0 / 0.7)"], [state.brush / 2, "#fff"]]) {
      context.strokeStyle = colour;
      context.beginPath();
      context.arc(x, y, radius, 0, 7);
      context.stroke();
    }
  }
  if (state.tool !== "ruler" && !cursor.keyboard) return;
  for (const [width, colour] of [[3, "rgb(0 0 0 / 0.6)"], [1, "#fff"]]) {
    context.lineWidth = width * unit;
    context.strokeStyle = colour;
    context.beginPath();
    for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      context.moveTo(x + dx * 3 * unit, y + dy * 3 * unit);
      context.lineTo(x + dx * 11 * unit, y + dy * 11 * unit);
    }
    context.stroke();
  }
}

function caption(pane, index) {
  const key = panes()[index];
  const layer = state.selected;
  const lines = [];
  if (key !== null) {
    lines.push(modelOf(key).label);
    const answer = layer && answerOf(layer, index);
    if (answer?.status === "failed") lines.push(answer.error.message);
    if (answer?.status === "ready") {
      const bits = answer.mask(thresholdOf(layer, answer));
      lines.push(`${layer.prompt}: ${areaText(answer.area, state.image.spacing)}`);
      const first = answerOf(layer, 0);
      if (index && first.status === "ready") {
        const value = dice(first.mask(thresholdOf(layer, first)), bits);
        lines[1] += value === null ? "" : `, Dice with the first ${value.toFixed(3)}`;
      }
    }
  }
  const element = pane.querySelector(".caption");
  const text = lines.join("\n");
  if (element.dataset.text === text) return;
  element.dataset.text = text;
  element.replaceChildren(
    ...lines.map((line, i) => {
      const part = document.createElement(i ? "span" : "b");
      part.textContent = line;
      return part;
    }),
  );
}

/** Draws every pane. */
export function draw() {
  if (!state.image || !state.picture) return;
  if (view.fitted) fit();
  [...holder.children].forEach((pane, index) => {
    const canvas = canvases[index];
    const ratio = devicePixelRatio;
    const [w, h] = [Math.round(canvas.clientWidth * ratio), Math.round(canvas.clientHeight * ratio)];
    if (canvas.width !== w || canvas.height !== h) Object.assign(canvas, { width: w, height: h });
    const context = canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, w, h);
    context.setTransform(ratio * view.scale, 0, 0, ratio * view.scale, ratio * view.x, ratio * view.y);
    const unit = 1 / view.scale;
    paint(context, index, unit, { resting: view.resting });
    rulers(context, unit);
    if (!state.compare || cursor.pane === index || state.tool !== "hand") pointer(context, unit);
    const answers = shown().map((one) => answerOf(one, index));
    pane.classList.toggle("waiting", answers.some((one) => one.status === "waiting"));
    pane.classList.toggle("active", panes().length > 1 && index === state.active);
    pane.style.setProperty("--layer", state.selected ? rgbText(state.selected) : "");
    caption(pane, index);
    // Where the image lies, for whoever measures the page.
    Object.assign(canvas.dataset, { scale: view.scale, x: view.x, y: view.y, frame: state.frame });
    const found = shown().map((one) => ({ one, answer: answerOf(one, index) })).filter((each) => each.answer.status === "ready");
    const facts = found.map(({ one, answer }) => `${one.prompt} ${areaText(answer.area ?? 0, state.image.spacing)}`);
    const model = panes()[index] === null ? "" : `, ${modelOf(panes()[index]).label}`;
    const label = `${state.image.name}, ${state.image.width} by ${state.image.height} pixels${model}. ${facts.join(", ") || "No masks"}. Tool: ${state.tool}.`;
    if (canvas.getAttribute("aria-label") !== label) canvas.setAttribute("aria-label", label);
  });
}
