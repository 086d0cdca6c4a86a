// What the page knows, and the questions it asks the server. Views read `state` and are told by `subscribe`.

import { api } from "./api.js";
import { Answer } from "./mask.js";
import { decodeGrey, fromBase64 } from "./png.js";

// Okabe and Ito's palette (2008), told apart with every common colour blindness; black is left out.
export const PALETTE = [
  { name: "sky blue", rgb: [86, 180, 233] },
  { name: "orange", rgb: [230, 159, 0] },
  { name: "bluish green", rgb: [0, 158, 115] },
  { name: "yellow", rgb: [240, 228, 66] },
  { name: "reddish purple", rgb: [204, 121, 167] },
  { name: "vermilion", rgb: [213, 94, 0] },
  { name: "blue", rgb: [0, 114, 178] },
];
export const ZERO_SHOT = ""; // the key of the base model as it is
const BUDGET = 200_000_000; // pixels of answers kept; beyond it the oldest uncorrected ones are asked again when needed

export const state = {
  models: [], // {key, label, note, threshold, loaded, classes}; key is the adapter's name or ZERO_SHOT
  corrections: true, // whether the server saves them
  model: null, // key: who answers the next prompt
  image: null, // {file, id, name, kind, width, height, frames, spacing}
  frame: 0,
  picture: null, // ImageBitmap
  pictured: 0, // its frame; differs from frame while that one is on its way
  layers: [], // {id, number, prompt, colour, visible, opacity, threshold, model}
  selected: null, // a layer
  compare: null, // null, or keys of the models side by side
  active: 0, // the pane that controls and corrections refer to
  tool: "hand",
  brush: 12,
  style: "fill", // fill | outline | heat
  peek: false,
  rulers: [], // {a, b} in image coordinates
  timing: null,
};

const answers = new Map(); // "layer|model|frame" -> Answer
const listeners = new Set();
let scheduled = false;

export function subscribe(listener) {
  listeners.add(listener);
}

/** Tells every view, once per frame of the screen. */
export function changed() {
  // For whoever waits for the page: drawn as it stands, and nothing asked that is not answered.
  document.body.dataset.settled = "false";
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(() => {
    scheduled = false;
    ask();
    for (const listener of listeners) listener();
    document.body.dataset.settled = String(!asked.size && state.pictured === state.frame);
  });
}

// A status line that screen readers hear; an action may come with it.
export const status = { text: "", tone: "calm", action: null };
export function say(text, tone = "calm", action = null) {
  Object.assign(status, { text, tone, action });
  changed();
}

// Models -------------------------------------------------------------------------------------------------------

export async function loadModels() {
  const told = await api.models();
  state.corrections = told.corrections !== false;
  state.models = told.adapters.filter((one) => !one.problem).map((one) => ({
    key: one.name,
    label: one.name,
    note: adapterNote(one),
    threshold: one.threshold,
    loaded: one.loaded,
    classes: one.classes ?? [],
  }));
  if (told.zero_shot || !state.models.length) {
    const note = "the base model as it is, without fine-tuning";
    state.models.push({ key: ZERO_SHOT, label: `${told.base}, zero-shot`, note, loaded: true, classes: [] });
  }
  if (!state.models.some((one) => one.key === state.model)) state.model = state.models[0].key;
  changed();
}

function adapterNote({ method, trained_on: data, scores }) {
  const dice = Object.entries(scores ?? {}).find(([name]) => /dice|dsc/i.test(name));
  const parts = [method && `method ${method}`, data && `trained on ${data}`, dice && `${dice[0]} ${Number(dice[1]).toFixed(3)}`];
  return parts.filter(Boolean).join("; ");
}

export function modelOf(key) {
  return state.models.find((one) => one.key === key) ?? { key, label: key || "zero-shot", classes: [] };
}

/** Keys of the models on the stage, one per pane; null stands for "each prompt's own". */
export function panes() {
  return state.compare ?? [null];
}

// Layers -------------------------------------------------------------------------------------------------------

let lastId = 0;

export function addLayer(prompt) {
  const same = state.layers.find((one) => one.prompt === prompt && one.model === state.model);
  if (same) {
    same.visible = true;
    state.selected = same;
    const answer = answerOf(same);
    if (answer.status === "failed") answer.status = "missing";
    changed();
    return same;
  }
  const used = new Set(state.layers.map((one) => one.colour));
  const free = PALETTE.findIndex((_, i) => !used.has(i));
  const numbers = new Set(state.layers.map((one) => one.number));
  let number = 1;
  while (numbers.has(number)) number++;
  const colour = free >= 0 ? free : lastId % PALETTE.length;
  const layer = { id: ++lastId, number, prompt, colour, visible: true, opacity: 0.45, threshold: null, model: state.model };
  state.layers.push(layer);
  state.selected = layer;
  changed();
  return layer;
}

export function removeLayer(layer) {
  const at = state.layers.indexOf(layer);
  state.layers.splice(at, 1);
  if (state.selected === layer) state.selected = state.layers[Math.min(at, state.layers.length - 1)] ?? null;
  const back = () => {
    state.layers.splice(Math.min(at, state.layers.length), 0, layer);
    state.selected = layer;
    say(`${layer.prompt}: back again.`);
  };
  say(`${layer.prompt}: removed.`, "calm", { label: "Undo", run: back });
}

// Answers ------------------------------------------------------------------------------------------------------

/** The answer to a layer's prompt in a pane (by default the active one); made, unasked, where there is none. */
export function answerOf(layer, pane = state.active, frame = state.frame) {
  const model = panes()[pane] ?? layer.model;
  const key = `${layer.id}|${model}|${frame}`;
  if (!answers.has(key)) answers.set(key, new Answer(layer, model, frame));
  return answers.get(key);
}

/** The threshold a layer is cut with: the person's, else the model's own. */
export function thresholdOf(layer, answer) {
  return layer.threshold ?? answer.own ?? 0.5;
}

export function shown() {
  return state.image ? state.layers.filter((one) => one.visible) : [];
}

export function unsavedCorrections() {
  return [...answers.values()].filter((one) => one.unsaved && state.layers.includes(one.layer));
}

const MOST = 16; // queries in a request
const asked = new Set(); // requests under way: {image, frame, stop}

function stopOthers(image, frame) {
  for (const one of asked) if (one.image !== image || one.frame !== frame) one.stop.abort();
}

/** Asks for what is shown and not answered yet, in one request. */
function ask() {
  stopOthers(state.image, state.frame);
  if (!state.image || state.pictured !== state.frame || !state.models.length) return;
  const wanted = [];
  for (const layer of shown()) {
    for (let pane = 0; pane < panes().length; pane++) {
      const answer = answerOf(layer, pane);
      if (answer.status === "missing") wanted.push(answer);
    }
  }
  const each = [...new Set(wanted)];
  for (let i = 0; i < each.length; i += MOST) request(each.slice(i, i + MOST));
}

/** Sees to it that the server holds the models of these keys; they may be on its disk only. */
export async function loadedModels(keys) {
  for (const key of new Set(keys)) {
    const model = modelOf(key);
    if (model.loaded !== false) continue;
    say(`Loading ${model.label} …`);
    await api.load(key);
    model.loaded = true;
  }
}

/** Asks about an image; loads adapters and sends the image again where the server has let go of them. */
export async function segment(image, frame, queries, options) {
  const names = queries.map((one) => one.adapter ?? ZERO_SHOT);
  await loadedModels(names);
  const once = () => withImage(image, (id) => api.segment(id, frame, queries, options));
  try {
    return await once();
  } catch (error) {
    if (error.status !== 409) throw error;
    for (const name of names) if (name !== ZERO_SHOT) modelOf(name).loaded = false;
    await loadedModels(names);
    return once();
  }
}

async function request(wanted) {
  const { image, frame } = state;
  const stop = new AbortController();
  const mine = { image, frame, stop };
  asked.add(mine);
  for (const answer of wanted) answer.status = "waiting";
  const queries = wanted.map((one) => ({ prompt: one.layer.prompt, adapter: one.model || null, threshold: null }));
  const begin = performance.now();
  const told = (seconds) => say(`The server is busy: trying again in ${seconds} s.`, "warn");
  try {
    const reply = await segment(image, frame, queries, { signal: stop.signal, told });
    const maps = await Promise.all(reply.results.map((one) => decodeGrey(fromBase64(one.png))));
    if (image !== state.image) return;
    wanted.forEach((answer, i) => answer.fill(maps[i], reply.results[i].threshold ?? modelOf(answer.model).threshold ?? 0.5));
    state.timing = { seconds: (performance.now() - begin) / 1000, server: reply.milliseconds, cached: reply.cached };
    trim();
    announce(wanted.length === 1 ? wanted[0] : null);
  } catch (error) {
    if (image !== state.image) return;
    if (error.name === "AbortError") for (const answer of wanted) answer.status = "missing";
    else if (error.kind === "refused" && wanted.length > 1) {
      // One bad prompt must not take the others with it.
      for (const answer of wanted) request([answer]);
    } else {
      for (const answer of wanted) Object.assign(answer, { status: "failed", error });
      say(`${wanted.map((one) => one.layer.prompt).join(", ")}: ${error.message}`, "bad");
    }
  } finally {
    asked.delete(mine);
  }
  changed();
}

let describe = () => "";
export function describeWith(how) {
  describe = how;
}
function announce(answer) {
  say(describe(answer));
}

export function retry(layer) {
  for (const answer of answers.values()) {
    if (answer.layer === layer && answer.status === "failed") answer.status = "missing";
  }
  changed();
}

/** Calls use(image_id); where the server has forgotten the image it is sent again, once. */
export async function withImage(image, use) {
  try {
    return await use(image.id);
  } catch (error) {
    if (error.kind !== "gone" || error.field === "adapter") throw error;
    const again = await api.upload(image.file, image.name);
    image.id = again.image_id;
    return use(image.id);
  }
}

/** Forgets answers of an image that is no longer shown. */
export function forgetAnswers() {
  stopOthers(null, 0);
  answers.clear();
}

function trim() {
  let pixels = 0;
  for (const answer of answers.values()) pixels += answer.data?.length ?? 0;
  for (const [key, answer] of answers) {
    if (pixels <= BUDGET) break;
    if (!answer.data || answer.corrected || answer.frame === state.frame) continue;
    pixels -= answer.data.length;
    answers.delete(key);
  }
}
