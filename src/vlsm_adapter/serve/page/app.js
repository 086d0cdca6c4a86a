// Puts the page together: tools, frames, comparison, dialogs, shortcuts.

import { onTokenWanted } from "./api.js";
import { prepareFiles, showFrame } from "./files.js";
import { drawPanel, element, markRadio, offerWords, preparePanel, radios, saveCorrection, sayArea, setText, showProblem, toggle } from "./panel.js";
import { listen } from "./pointer.js";
import { answerOf, changed, loadModels, panes, removeLayer, say, state, status, subscribe, ZERO_SHOT } from "./state.js";
import { cursor, draw, fit, layOut, native, view, zoom } from "./view.js";

const $ = (id) => document.getElementById(id);

// Tools ----------------------------------------------------------------------------------------------------------

function setTool(name) {
  state.tool = name;
  if (name === "brush" || name === "eraser") state.peek = false;
  changed();
}

function setBrush(size) {
  state.brush = Math.min(Number($("brush").max), Math.max(1, size));
  changed();
}

/** A brush that fits the image: 12 pixels of a small one are a speck in a large one. */
function fitBrush({ width, height }) {
  const side = Math.min(width, height);
  $("brush").max = Math.max(120, Math.round(side / 4));
  setBrush(Math.max(12, Math.round(side / 50)));
}

function step(name) {
  const answer = state.selected && state.image ? answerOf(state.selected) : null;
  if (answer?.edits && answer[name]()) sayArea(state.selected);
}

function setCompare(on) {
  if (!on) state.compare = null;
  else {
    // The selected prompt's own model first, then the base model, else the next adapter.
    const own = state.selected?.model ?? state.model;
    const others = state.models.map((one) => one.key).filter((key) => key !== own);
    const second = others.includes(ZERO_SHOT) ? ZERO_SHOT : others[0];
    state.compare = second === undefined ? [own] : [own, second];
    if (second === undefined) say("There is one model only: nothing to compare it with.", "warn");
  }
  state.active = 0;
  view.fitted = true;
  changed();
}

function drawComparison() {
  $("comparison").hidden = !state.compare;
  if (!state.compare) return;
  const list = $("comparison-models");
  const keys = state.models.map((one) => one.key).join("\n");
  if (list.dataset.keys !== keys) {
    list.dataset.keys = keys;
    list.replaceChildren(
      ...state.models.map((one) => {
        const box = element("input", { type: "checkbox", value: one.key });
        box.addEventListener("change", () => {
          const chosen = [...list.querySelectorAll("input:checked")].map((each) => each.value);
          // A model's own pane stays where it is; new ones are added behind.
          state.compare = [...state.compare.filter((key) => chosen.includes(key)), ...chosen.filter((key) => !state.compare.includes(key))];
          if (!state.compare.length) setCompare(false);
          state.active = 0;
          view.fitted = true;
          changed();
        });
        return element("li", {}, element("label", {}, box, one.label));
      }),
    );
  }
  for (const box of list.querySelectorAll("input")) {
    box.checked = state.compare.includes(box.value);
    box.disabled = !box.checked && state.compare.length >= 4;
  }
}

function drawTools() {
  const { image } = state;
  const chosen = document.querySelector(`[data-tool=${state.tool}]`);
  markRadio(chosen.parentElement, chosen);
  $("brush-group").hidden = state.tool !== "brush" && state.tool !== "eraser";
  if (Number($("brush").value) !== state.brush) $("brush").value = state.brush;
  setText($("brush-text"), `${state.brush} px`);
  const answer = state.selected && image ? answerOf(state.selected) : null;
  $("undo").disabled = !answer?.done?.length;
  $("redo").disabled = !answer?.undone?.length;
  $("peek").setAttribute("aria-pressed", String(state.peek));
  $("compare").setAttribute("aria-pressed", String(state.compare !== null));
  setText($("zoom"), `${Math.round(view.scale * devicePixelRatio * 100)} %`);
  $("frames").hidden = !image || image.frames < 2;
  if (image) {
    $("frame").max = image.frames;
    if (Number($("frame").value) !== state.frame + 1) $("frame").value = state.frame + 1;
    setText($("frame-text"), `${state.frame + 1} / ${image.frames}`);
    $("frame-back").disabled = state.frame === 0;
    $("frame-forward").disabled = state.frame === image.frames - 1;
  }
}

function facts() {
  const { image } = state;
  $("image-facts").replaceChildren();
  if (!image) return;
  const spacing = image.spacing ? `${image.spacing.map((mm) => Number(mm.toPrecision(3))).join(" × ")} mm per px` : "no spacing: areas in px";
  $("image-facts").append(element("b", {}, image.name), " ", element("span", {}, `${image.width} × ${image.height} px, ${spacing}`));
}

function readout() {
  const at = cursor.at;
  const { image } = state;
  let text = "";
  if (image && at && at.x >= 0 && at.y >= 0 && at.x < image.width && at.y < image.height) {
    const [x, y] = [Math.floor(at.x), Math.floor(at.y)];
    text = `x ${x}  y ${y}`;
    const answer = state.selected && answerOf(state.selected, Math.min(cursor.pane, panes().length - 1));
    if (answer?.status === "ready") text += `  p ${(answer.data[y * image.width + x] / 255).toFixed(2)}`;
  }
  setText($("readout"), text);
}

let factsOf = null;
let firstAsked = 0;

function render() {
  const { image } = state;
  $("empty").hidden = image !== null;
  for (const id of ["panes", "tools"]) $(id).hidden = image === null;
  if (factsOf !== image) {
    facts();
    if (image) fitBrush(image);
  }
  factsOf = image;
  drawPanel();
  drawComparison();
  drawTools();
  if (image) {
    layOut(listen);
    draw();
    setText($("zoom"), `${Math.round(view.scale * devicePixelRatio * 100)} %`);
    $("zoom").ariaLabel = `${$("zoom").textContent}, native size`;
    clockFirstOverlay();
  }
  readout();
  setText($("status"), status.text);
  $("status").className = status.tone;
  $("status-action").hidden = !status.action;
  setText($("status-action"), status.action?.label ?? "");
}

/** Seconds from the first question to its mask on the screen, on <body data-first-overlay>. */
function clockFirstOverlay() {
  const { dataset } = document.body;
  if (dataset.firstOverlay) return;
  const answers = state.layers.map((one) => answerOf(one));
  if (!firstAsked && answers.some((one) => one.status === "waiting")) firstAsked = performance.now();
  if (firstAsked && answers.some((one) => one.status === "ready")) {
    dataset.firstOverlay = ((performance.now() - firstAsked) / 1000).toFixed(3);
  }
}

// Dialogs and scheme -----------------------------------------------------------------------------------------------

function prepareDialogs() {
  $("help-open").addEventListener("click", () => $("help").showModal());
  $("single-keys").checked = read("vlsm-keys") !== "off";
  $("single-keys").addEventListener("change", () => write("vlsm-keys", $("single-keys").checked ? "on" : "off"));
  onTokenWanted(async (wrongBefore) => {
    $("token-problem").hidden = !wrongBefore;
    $("token").value = "";
    $("token-dialog").returnValue = "cancel";
    $("token-dialog").showModal();
    await new Promise((done) => $("token-dialog").addEventListener("close", done, { once: true }));
    const value = $("token").value.trim();
    $("token").value = "";
    return $("token-dialog").returnValue === "ok" && value ? value : null;
  });
  const schemes = ["system", "light", "dark"];
  const show = () => {
    const now = document.documentElement.dataset.theme ?? "system";
    $("theme").title = $("theme").ariaLabel = `Colours: ${now}. Switch to ${schemes[(schemes.indexOf(now) + 1) % 3]}`;
  };
  $("theme").addEventListener("click", () => {
    const now = document.documentElement.dataset.theme ?? "system";
    const next = schemes[(schemes.indexOf(now) + 1) % 3];
    if (next === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = next;
    write("vlsm-theme", next);
    show();
    changed();
  });
  show();
}

function read(key) {
  try {
    return localStorage.getItem(key);
  } catch {
    return null;
  }
}

function write(key, value) {
  try {
    localStorage.setItem(key, value);
  } catch {
    // Storage is refused: it holds until the page is closed.
  }
}

// Shortcuts --------------------------------------------------------------------------------------------------------

const KEYS = {
  o: () => $("file").click(),
  "/": () => $("prompt").focus(),
  v: () => state.selected && toggle(state.selected),
  t: () => $("threshold").focus(),
  x: () => (state.peek = !state.peek),
  c: () => state.image && setCompare(!state.compare),
  ",": () => showFrame(state.frame - 1),
  ".": () => showFrame(state.frame + 1),
  "+": () => zoom(1.25),
  "=": () => zoom(1.25),
  "-": () => zoom(0.8),
  f: fit,
  n: native,
  h: () => setTool("hand"),
  b: () => setTool("brush"),
  e: () => setTool("eraser"),
  m: () => setTool("ruler"),
  "[": () => setBrush(state.brush - Math.max(1, Math.round(state.brush / 8))),
  "]": () => setBrush(state.brush + Math.max(1, Math.round(state.brush / 8))),
  "?": () => $("help").showModal(),
  Delete: () => state.selected && removeLayer(state.selected),
};

function shortcut(event) {
  if (document.querySelector("dialog[open]")) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const typing = event.target.matches("input[type=text], input[type=password], select, textarea");
  if (event.ctrlKey || event.metaKey) {
    if (typing && key !== "s") return;
    if (key === "z") step(event.shiftKey ? "redo" : "undo");
    else if (key === "y") step("redo");
    else if (key === "s" && state.image) saveCorrection();
    else return;
    event.preventDefault();
    return;
  }
  if (typing) {
    if (key === "Escape") event.target.blur();
    return;
  }
  if (event.altKey || (!$("single-keys").checked && key.length === 1)) return;
  const layer = /^[1-9]$/.test(key) && state.layers.find((one) => one.number === Number(key));
  if (layer) state.selected = layer;
  else if (KEYS[key]) KEYS[key]();
  else return;
  event.preventDefault();
  changed();
}

function prepareTools() {
  radios(document.querySelector("#tools [role=radiogroup]"), (button) => setTool(button.dataset.tool));
  const click = (id, run) => $(id).addEventListener("click", () => (run(), changed()));
  $("brush").addEventListener("input", () => setBrush(Number($("brush").value)));
  click("undo", () => step("undo"));
  click("redo", () => step("redo"));
  click("peek", () => (state.peek = !state.peek));
  click("compare", () => setCompare(!state.compare));
  click("zoom-in", () => zoom(1.25));
  click("zoom-out", () => zoom(0.8));
  click("zoom", native);
  click("fit", fit);
  $("frame").addEventListener("input", () => showFrame(Number($("frame").value) - 1));
  $("frame-back").addEventListener("click", () => showFrame(state.frame - 1));
  $("frame-forward").addEventListener("click", () => showFrame(state.frame + 1));
  $("status-action").addEventListener("click", () => {
    const { action } = status;
    status.action = null;
    action?.run();
  });
  addEventListener("keydown", shortcut);
  new ResizeObserver(changed).observe($("panes"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
}

async function start() {
  try {
    await loadModels();
    showProblem($("ask-problem"), "");
    offerWords();
  } catch (error) {
    showProblem($("ask-problem"), error.message, start);
  }
}

subscribe(render);
preparePanel();
prepareFiles();
prepareTools();
prepareDialogs();
changed();
start();
