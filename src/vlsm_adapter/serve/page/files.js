// From a dropped, chosen or pasted file to a picture on the stage, and back to files.

import { api } from "./api.js";
import { areaText } from "./mask.js";
import { element, showProblem, unsavedCorrections } from "./panel.js";
import { encodeGrey, toBase64 } from "./png.js";
import { addLayer, answerOf, changed, forgetAnswers, modelOf, panes, say, segment, shown, state, thresholdOf, withImage } from "./state.js";
import { paint, view } from "./view.js";

const $ = (id) => document.getElementById(id);
const pictures = new Map(); // frame -> ImageBitmap, the last few
let loading = null; // the upload or frame that is wanted now

function problem(text, again = null) {
  showProblem($("file-problem"), state.image ? "" : text, again);
  showProblem($("stage-problem"), state.image ? text : "", again);
}

async function sureToLeave() {
  const left = unsavedCorrections();
  if (!left.length) return true;
  const names = [...new Set(left.map((one) => one.layer.prompt))].join(", ");
  $("leave-text").textContent = `${left.length === 1 ? "A correction" : `${left.length} corrections`} of ${state.image.name} (${names}) would be lost.`;
  $("leave").returnValue = "stay";
  $("leave").showModal();
  await new Promise((done) => $("leave").addEventListener("close", done, { once: true }));
  return $("leave").returnValue === "go";
}

/** Opens an image; the one before stays until the new one is read. */
export async function openFile(file, name = file.name || "pasted.png") {
  if (!(await sureToLeave())) return false;
  problem("");
  if (!file.size) {
    problem(`${name}: the file is empty.`);
    return false;
  }
  const mine = (loading = {});
  say(`Reading ${name} …`);
  const told = (seconds) => say(`The server is busy: sending ${name} again in ${seconds} s.`, "warn");
  try {
    const facts = await api.upload(file, name, told);
    const picture = await createImageBitmap(await api.picture(facts.image_id, 0));
    if (loading !== mine) return false;
    forgetAnswers();
    const before = state.image;
    pictures.clear();
    pictures.set(0, picture);
    Object.assign(state, {
      image: { ...facts, file, id: facts.image_id, name: facts.name || name },
      picture,
      pictured: 0,
      frame: 0,
      rulers: [],
      active: 0,
    });
    if (before && before.id !== state.image.id) api.forget(before.id);
    view.fitted = true;
    say(state.layers.length ? `${state.image.name} is open.` : `${state.image.name} is open. Type what to find.`);
    return true;
  } catch (error) {
    if (loading !== mine) return false;
    const text = error.kind ? readable(error, name) : `${name}: the browser cannot show what the server sent (${error.message}).`;
    say("The image was not opened.", "bad");
    problem(text, error.kind === "refused" ? null : () => openFile(file, name));
    return false;
  }
}

function readable(error, name) {
  if (error.kind === "network") return `${name}: the server cannot be reached. Is it running?`;
  if (error.kind === "busy") return `${name}: the server is busy.`;
  return error.message.includes(name) ? error.message : `${name}: ${error.message}`;
}

/** Shows a frame; answers follow once its picture is there. */
export async function showFrame(frame) {
  const { image } = state;
  if (!image || frame < 0 || frame >= image.frames) return;
  const mine = (loading = {});
  state.frame = frame;
  state.rulers = [];
  const known = pictures.get(frame);
  if (known) {
    Object.assign(state, { picture: known, pictured: frame });
    changed();
    return;
  }
  changed();
  await new Promise((done) => setTimeout(done, 60)); // while the slider is drawn along, only the last frame is read
  if (loading !== mine) return;
  try {
    const picture = await createImageBitmap(await withImage(image, (id) => api.picture(id, frame)));
    if (pictures.size > 24) pictures.delete(pictures.keys().next().value);
    pictures.set(frame, picture);
    if (loading !== mine) return;
    Object.assign(state, { picture, pictured: frame });
    problem("");
  } catch (error) {
    if (loading !== mine) return;
    problem(`Frame ${frame + 1}: ${error.message}`, () => showFrame(frame));
  }
  changed();
}

async function openSample(button) {
  const name = `${button.dataset.sample}-example.webp`;
  try {
    const blob = await (await fetch(button.querySelector("img").src)).blob();
    if (!(await openFile(new File([blob], name, { type: "image/webp" }), name))) return;
    if (!state.layers.length) {
      $("prompt").value = button.dataset.prompt;
      addLayer(button.dataset.prompt);
    }
    $("prompt").focus({ preventScroll: true });
  } catch {
    problem("The example cannot be loaded: the server cannot be reached.", () => openSample(button));
  }
}

// Downloads ------------------------------------------------------------------------------------------------------

function keep(blob, name) {
  const link = element("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

function stem(every = false) {
  const name = state.image.name.replace(/(\.nii)?\.[A-Za-z0-9]{1,5}$/, "") || "image";
  return state.image.frames > 1 && !every ? `${name}_${state.frame + 1}` : name;
}

let collecting = null; // the download that asks frame after frame

/** Masks of the wanted prompts on the wanted frames: {layer, answer or null, frame, adapter, threshold, area, png}. */
async function collect() {
  const { image } = state;
  const layers = $("scope").value === "selected" ? [state.selected].filter(Boolean) : shown();
  const every = image.frames > 1 && $("which-frames").value === "all";
  const frames = every ? [...Array(image.frames).keys()] : [state.frame];
  const mine = (collecting = {});
  const found = [];
  for (const frame of frames) {
    const missing = [];
    for (const layer of layers) {
      const answer = answerOf(layer, state.active, frame);
      const adapter = (panes()[state.active] ?? layer.model) || null;
      if (answer.status === "ready") {
        const threshold = thresholdOf(layer, answer);
        const bits = answer.mask(threshold).map((bit) => bit * 255);
        const png = toBase64(await encodeGrey(bits, answer.width, answer.height));
        found.push({ layer, frame, adapter, threshold, area: answer.area, corrected: answer.corrected, png });
      } else if (every) missing.push({ layer, adapter });
    }
    if (!missing.length) continue;
    const stop = { label: "Stop", run: () => (collecting = null, say("The download was stopped.")) };
    say(`Asking frame ${frame + 1} of ${image.frames} …`, "calm", stop);
    const queries = missing.map(({ layer, adapter }) => ({ prompt: layer.prompt, adapter, threshold: layer.threshold }));
    const reply = await segment(image, frame, queries, { form: "mask" });
    if (collecting !== mine || state.image !== image) return null;
    reply.results.forEach(({ threshold, area_px: area, png }, i) => found.push({ ...missing[i], frame, threshold, area, corrected: false, png }));
  }
  return found;
}

async function picture() {
  const { width, height } = state.image;
  const canvas = new OffscreenCanvas(width, height);
  paint(canvas.getContext("2d"), state.active, 1, { labels: false });
  keep(await canvas.convertToBlob({ type: "image/png" }), `${stem()}_overlay.png`);
}

function table(masks) {
  const { spacing, name } = state.image;
  const quote = (value) => (/[",\n\r]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
  const lines = ["image,frame,prompt,model,threshold,corrected,area_px,area_mm2"];
  for (const { layer, frame, adapter, threshold, area, corrected } of masks) {
    const mm2 = spacing ? (area * spacing[0] * spacing[1]).toFixed(4) : "";
    const model = modelOf(adapter ?? "").label;
    lines.push([quote(name), frame, quote(layer.prompt), quote(model), threshold, corrected, area, mm2].join());
  }
  keep(new Blob([`${lines.join("\n")}\n`], { type: "text/csv" }), `${stem(true)}_areas.csv`);
}

async function download(format) {
  const note = $("export-problem");
  showProblem(note, "");
  if (format === "picture") return picture();
  const { image, frame } = state;
  try {
    const found = await collect();
    if (!found) return undefined;
    if (!found.length) return showProblem(note, "There is no mask to download: type a prompt first.");
    if (format === "csv") return table(found);
    const masks = found.map((one) => ({ prompt: one.layer.prompt, frame: one.frame, adapter: one.adapter, png: one.png }));
    const { blob, name } = await withImage(image, (id) => api.download(id, frame, format, masks));
    const own = `${stem(masks.some((one) => one.frame !== frame))}_${name}`;
    keep(blob, own);
    say(`${own}: ${found.length === 1 ? areaText(found[0].area, image.spacing) : `${found.length} masks`}, downloaded.`);
  } catch (error) {
    showProblem(note, error.message, error.kind === "refused" ? null : () => download(format));
  }
  return undefined;
}

export function prepareFiles() {
  const choose = () => $("file").click();
  $("open").addEventListener("click", choose);
  $("choose").addEventListener("click", choose);
  $("file").addEventListener("change", () => {
    const [file] = $("file").files;
    $("file").value = "";
    if (file) openFile(file);
  });
  for (const button of document.querySelectorAll("[data-sample]")) button.addEventListener("click", () => openSample(button));
  for (const button of document.querySelectorAll("[data-format]")) {
    button.addEventListener("click", () => {
      if (button.getAttribute("aria-disabled") !== "true") download(button.dataset.format);
    });
  }
  const carriesFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  let depth = 0;
  addEventListener("dragenter", (event) => {
    if (!carriesFiles(event)) return;
    depth++;
    $("stage").classList.add("over");
  });
  addEventListener("dragleave", () => {
    depth = Math.max(0, depth - 1);
    if (!depth) $("stage").classList.remove("over");
  });
  addEventListener("dragover", (event) => carriesFiles(event) && event.preventDefault());
  addEventListener("drop", (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    depth = 0;
    $("stage").classList.remove("over");
    const { files } = event.dataTransfer;
    if (files.length > 1) say("One image at a time: the first is opened.", "warn");
    if (files[0]) openFile(files[0]);
  });
  addEventListener("paste", (event) => {
    const [file] = event.clipboardData?.files ?? [];
    if (!file) return;
    event.preventDefault();
    openFile(file, file.name || "pasted.png");
  });
  addEventListener("beforeunload", (event) => {
    if (unsavedCorrections().length) event.preventDefault();
  });
}
