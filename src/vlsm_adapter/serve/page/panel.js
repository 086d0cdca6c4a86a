// The legend, the controls of the selected prompt, corrections.

import { api } from "./api.js";
import { areaText } from "./mask.js";
import { encodeGrey, toBase64 } from "./png.js";
import { PALETTE, addLayer, answerOf, changed, describeWith, modelOf, removeLayer, retry, say, state, thresholdOf, unsavedCorrections, withImage } from "./state.js";

const $ = (id) => document.getElementById(id);
const rows = new Map(); // layer -> its parts in the legend

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") for (const [event, run] of Object.entries(value)) made.addEventListener(event, run);
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

/** Sets text only where it changed, so that screen readers and selections are left alone. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Shows a problem where it happened, with a button that tries again where that may help. */
export function showProblem(node, text, again = null) {
  node.hidden = !text;
  node.replaceChildren(text ?? "");
  if (text && again) node.append(element("button", { type: "button", on: { click: again } }, "Try again"));
}

/** The arrow keys walk through the buttons of a radio group; only the chosen one is a tab stop. */
export function radios(group, choose) {
  const buttons = () => [...group.querySelectorAll("[role=radio]")];
  group.addEventListener("click", (event) => {
    const button = event.target.closest("[role=radio]");
    if (button) choose(button);
  });
  group.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    const all = buttons();
    const next = all[(all.indexOf(document.activeElement) + step + all.length) % all.length];
    choose(next);
    next.focus();
    event.preventDefault();
    event.stopPropagation();
  });
}

export function markRadio(group, chosen) {
  for (const button of group.querySelectorAll("[role=radio]")) {
    button.setAttribute("aria-checked", String(button === chosen));
    button.tabIndex = button === chosen ? 0 : -1;
  }
}

/** Fills a select with the models. */
export function offerModels(select, chosen) {
  const keys = state.models.map((one) => one.key).join("\n");
  if (select.dataset.keys !== keys) {
    select.dataset.keys = keys;
    select.replaceChildren(...state.models.map((one) => element("option", { value: one.key }, one.label)));
  }
  if (chosen !== null && select.value !== chosen) select.value = chosen;
}

// Legend -------------------------------------------------------------------------------------------------------

function makeRow(layer) {
  const parts = {
    swatch: element("span", { class: "swatch", "aria-hidden": "true" }),
    prompt: element("span", { class: "prompt" }, layer.prompt),
    area: element("span", { class: "area" }),
    by: element("span", { class: "by" }),
    share: element("span", { class: "share" }),
    problem: element("p", { class: "problem", role: "alert", hidden: "" }),
  };
  const select = () => {
    state.selected = layer;
    changed();
  };
  parts.pick = element("button", { type: "button", class: "pick", title: layer.prompt, on: { click: select } }, parts.swatch, parts.prompt, parts.area, parts.by, parts.share);
  parts.eye = element("button", { type: "button", class: "icon", on: { click: () => toggle(layer) } });
  const remove = () => {
    removeLayer(layer);
    (rows.get(state.selected)?.pick ?? $("prompt")).focus();
  };
  parts.remove = element("button", { type: "button", class: "icon", "aria-label": `Remove ${layer.prompt}`, title: "Remove (Delete)", on: { click: remove } }, icon("close"));
  parts.item = element("li", {}, parts.pick, parts.eye, parts.remove, parts.problem);
  return parts;
}

export function toggle(layer) {
  layer.visible = !layer.visible;
  changed();
}

function percent(part) {
  const value = 100 * part;
  return `${value < 10 ? value.toFixed(2) : value.toFixed(1)} %`;
}

function drawRow(layer) {
  const parts = rows.get(layer);
  const answer = state.image ? answerOf(layer) : null;
  const { item, swatch, prompt, area, by, share, pick, eye, problem } = parts;
  const [r, g, b] = PALETTE[layer.colour].rgb;
  item.style.setProperty("--layer", `rgb(${r} ${g} ${b})`);
  swatch.classList.toggle("dark", 0.299 * r + 0.587 * g + 0.114 * b < 115);
  setText(swatch, String(layer.number));
  setText(prompt, layer.prompt);
  item.classList.toggle("selected", layer === state.selected);
  item.classList.toggle("hidden-layer", !layer.visible);
  pick.setAttribute("aria-current", String(layer === state.selected));
  eye.setAttribute("aria-pressed", "false");
  eye.setAttribute("aria-label", `${layer.visible ? "Hide" : "Show"} ${layer.prompt}`);
  eye.title = `${layer.visible ? "Hide" : "Show"} (V)`;
  const look = layer.visible ? "eye" : "eye-off";
  if (eye.dataset.look !== look) {
    eye.dataset.look = look;
    eye.replaceChildren(icon(look));
  }
  setText(by, (answer?.corrected ? "corrected; " : "") + modelOf(answer?.model ?? layer.model).label);
  if (answer?.status === "ready") {
    answer.mask(thresholdOf(layer, answer));
    setText(area, areaText(answer.area, state.image.spacing));
    setText(share, state.image.spacing ? `${answer.area.toLocaleString("en")} px` : percent(answer.area / answer.data.length));
  } else {
    setText(area, !answer ? "waits for an image" : answer.status === "failed" ? "" : layer.visible ? "…" : "");
    setText(share, "");
  }
  const text = answer?.status === "failed" ? answer.error.message : "";
  if (problem.dataset.text !== text) {
    problem.dataset.text = text;
    showProblem(problem, text, answer?.error?.kind === "refused" ? null : () => retry(layer));
  }
}

let inView = null; // the layer that the list was scrolled to

function drawLegend() {
  const list = $("legend");
  for (const [layer, parts] of rows) {
    if (state.layers.includes(layer)) continue;
    parts.item.remove();
    rows.delete(layer);
  }
  state.layers.forEach((layer, i) => {
    if (!rows.has(layer)) rows.set(layer, makeRow(layer));
    const { item } = rows.get(layer);
    if (list.children[i] !== item) list.insertBefore(item, list.children[i] ?? null);
    drawRow(layer);
  });
  if (state.selected !== inView) {
    inView = state.selected;
    const item = rows.get(inView)?.item;
    // Not scrollIntoView: it would move the page as well.
    if (item) list.scrollTop = Math.max(item.offsetTop + item.offsetHeight - list.clientHeight, Math.min(list.scrollTop, item.offsetTop));
  }
  $("legend-empty").hidden = state.layers.length > 0;
}

// Controls of the selected prompt --------------------------------------------------------------------------------

let drawnHistogram = null;

function drawHistogram(answer, threshold, layer) {
  const canvas = $("histogram");
  const [w, h] = [canvas.clientWidth - 14, canvas.clientHeight].map((n) => Math.max(1, Math.round(n * devicePixelRatio)));
  const ink = getComputedStyle(canvas).color;
  const key = [answer.data.length, threshold, layer.colour, w, h, ink].join();
  if (drawnHistogram?.data === answer.data && drawnHistogram.key === key) return;
  drawnHistogram = { data: answer.data, key };
  Object.assign(canvas, { width: w, height: h });
  const bins = new Uint32Array(64);
  for (const value of answer.data) bins[value >> 2]++;
  const top = Math.log1p(Math.max(...bins));
  const context = canvas.getContext("2d");
  bins.forEach((count, i) => {
    const height = (Math.log1p(count) / top) * h;
    const inside = (i + 0.5) / 64 > threshold;
    context.fillStyle = inside ? `rgb(${PALETTE[layer.colour].rgb.join(" ")})` : ink;
    context.globalAlpha = inside ? 1 : 0.22;
    context.fillRect((i * w) / 64, h - height, w / 64 - 1, height);
  });
}

function drawControls() {
  const layer = state.selected;
  $("controls").hidden = !layer;
  if (!layer) return;
  const answer = state.image ? answerOf(layer) : null;
  const ready = answer?.status === "ready";
  setText($("controls-title"), layer.prompt);
  const threshold = answer ? thresholdOf(layer, answer) : layer.threshold ?? 0.5;
  $("threshold").disabled = !ready;
  if (Number($("threshold").value) !== threshold) $("threshold").value = threshold;
  setText($("threshold-text"), threshold.toFixed(2));
  $("threshold-own").hidden = layer.threshold === null;
  setText($("threshold-own"), answer?.own !== undefined ? `reset to ${answer.own.toFixed(2)}` : "reset");
  if (ready) drawHistogram(answer, threshold, layer);
  if (Number($("opacity").value) !== layer.opacity) $("opacity").value = layer.opacity;
  setText($("opacity-text"), `${Math.round(layer.opacity * 100)} %`);
  markRadio($("colours"), $("colours").children[layer.colour]);
  $("style").value = state.style;
  $("answered").hidden = state.compare !== null;
  offerModels($("layer-model"), layer.model);
  setText($("model-note"), modelOf(answer?.model ?? layer.model).note ?? "");
}

function drawCorrection() {
  const layer = state.selected;
  const answer = layer && state.image ? answerOf(layer) : null;
  const corrected = Boolean(answer?.corrected);
  // A mask that is right as it is, or at another threshold, is worth as much to training as one that was painted.
  const wanted = corrected || (answer?.status === "ready" && state.corrections);
  $("correction").hidden = !wanted;
  if (!wanted) return;
  const threshold = thresholdOf(layer, answer);
  const { more, less } = answer.changes(threshold);
  const text = corrected ? `${more.toLocaleString("en")} px added, ${less.toLocaleString("en")} px removed` : `as answered, at threshold ${threshold.toFixed(2)}`;
  const isSaved = answer.saved === answer.state;
  const where = state.corrections ? "" : " This server keeps no corrections (vlsm serve --corrections DIR does); download the mask instead.";
  setText($("correction-title"), corrected ? "Correction" : "Right as it is?");
  setText($("correction-text"), `${layer.prompt}: ${text}, ${isSaved ? "saved" : "not saved yet"}.${where}`);
  setText($("save"), corrected ? "Save correction" : "Save mask");
  $("save").classList.toggle("primary", corrected);
  $("save").hidden = !state.corrections;
  $("save").disabled = isSaved || answer.saving === true;
  $("discard").hidden = !corrected;
  if ($("save-problem").dataset.layer !== String(layer.id)) showProblem($("save-problem"), "");
}

export function drawPanel() {
  drawLegend();
  drawControls();
  drawCorrection();
  $("export").hidden = !state.image;
  const seg = document.querySelector("[data-format=seg]");
  const dicom = state.image?.kind === "dicom";
  $("frames-scope").hidden = !state.image || state.image.frames < 2;
  seg.setAttribute("aria-disabled", String(!dicom));
  $("seg-hint").hidden = dicom;
  offerModels($("model"), state.model);
}

/** Saves the selected mask as a correction on the server. */
export async function saveCorrection() {
  const layer = state.selected;
  const { image, frame } = state;
  const answer = layer && image ? answerOf(layer) : null;
  if (answer?.status !== "ready") return say("There is no mask to save: type a prompt first.", "warn");
  if (!state.corrections) return say("This server keeps no corrections: download the mask instead.", "warn");
  const mask = answer.mask(thresholdOf(layer, answer)).map((bit) => bit * 255);
  const { state: saved, corrected } = answer;
  if (answer.saved === saved || answer.saving) return undefined;
  showProblem($("save-problem"), "");
  answer.saving = true;
  changed();
  try {
    const png = toBase64(await encodeGrey(mask, answer.width, answer.height));
    const reply = await withImage(image, (id) =>
      api.correction({ image_id: id, frame, prompt: layer.prompt, adapter: answer.model || null, png }),
    );
    answer.saved = saved;
    say(`${layer.prompt}: ${corrected ? "correction" : "mask"} saved; the server now holds ${reply.saved}.`);
  } catch (error) {
    const kept = " The mask is still here; it can be downloaded as a PNG.";
    $("save-problem").dataset.layer = layer.id;
    showProblem($("save-problem"), error.message + kept, error.status === 403 ? null : saveCorrection);
  } finally {
    answer.saving = false;
    changed();
  }
  return undefined;
}

function describe(answer) {
  const { timing, image } = state;
  const encode = timing?.server?.encode ?? 0;
  const encoded = timing?.cached || encode < 0.5 ? "image already encoded" : `${Math.round(encode)} ms for the image`;
  const took = timing ? `answered in ${timing.seconds.toFixed(2)} s, ${encoded}` : "";
  if (!answer) return took.charAt(0).toUpperCase() + took.slice(1) + ".";
  answer.mask(thresholdOf(answer.layer, answer));
  const area = areaText(answer.area, image.spacing);
  const found = answer.area ? `${area}, ${percent(answer.area / answer.data.length)} of the image` : "nothing found above the threshold";
  const by = state.compare ? ` (${modelOf(answer.model).label})` : "";
  return `${answer.layer.prompt}${by}: ${found}; ${took}.`;
}

/** Says the area of a mask that a person has changed; the status line must not go on saying the one before. */
export function sayArea(layer) {
  const answer = answerOf(layer);
  if (answer.status !== "ready") return;
  const threshold = thresholdOf(layer, answer);
  answer.mask(threshold);
  const area = `${areaText(answer.area, state.image.spacing)}, ${percent(answer.area / answer.data.length)} of the image`;
  say(`${layer.prompt}: ${area}; ${answer.corrected ? "corrected, " : ""}threshold ${threshold.toFixed(2)}.`);
}

export function preparePanel() {
  describeWith(describe);
  PALETTE.forEach((colour, i) => {
    const button = element("button", { type: "button", role: "radio", "aria-label": colour.name, title: colour.name, "data-colour": i });
    button.style.setProperty("--layer", `rgb(${colour.rgb.join(" ")})`);
    $("colours").append(button);
  });
  const onSelected = (change) => (event) => {
    if (state.selected) change(state.selected, event.target);
    changed();
  };
  radios($("colours"), (button) => {
    if (state.selected) state.selected.colour = Number(button.dataset.colour);
    changed();
  });
  $("threshold").addEventListener("input", onSelected((layer, input) => (layer.threshold = Number(input.value))));
  $("threshold").addEventListener("change", () => state.selected && sayArea(state.selected));
  $("threshold-own").addEventListener("click", () => {
    state.selected.threshold = null;
    $("threshold").focus();
    sayArea(state.selected);
  });
  $("opacity").addEventListener("input", onSelected((layer, input) => (layer.opacity = Number(input.value))));
  $("layer-model").addEventListener("change", onSelected((layer, input) => (layer.model = input.value)));
  $("style").addEventListener("change", (event) => {
    state.style = event.target.value;
    changed();
  });
  $("model").addEventListener("change", (event) => {
    state.model = event.target.value;
    offerWords();
    changed();
  });
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    const prompt = $("prompt").value.trim().replace(/\s+/g, " ");
    showProblem($("ask-problem"), prompt ? "" : "Name what to find, such as polyp.");
    if (!prompt) return;
    if (!state.image) say(`${prompt}: kept until there is an image.`);
    addLayer(prompt);
    $("prompt").select();
  });
  $("prompt").addEventListener("input", () => showProblem($("ask-problem"), ""));
  $("save").addEventListener("click", saveCorrection);
  $("discard").addEventListener("click", () => {
    const answer = answerOf(state.selected);
    while (answer.undo());
    say("The correction is discarded; redo brings it back.");
  });
}

/** The words the chosen adapter was trained with, as suggestions. */
export function offerWords() {
  $("known").replaceChildren(...(modelOf(state.model).classes ?? []).map((word) => element("option", { value: word })));
}

export { unsavedCorrections };
