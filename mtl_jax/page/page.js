// The page: photographs in, answers over them, thresholds, and files to keep.
import {ask, load} from "./backend.js";
import {css, draw, falling, indexed, percent} from "./drawing.js";

const DEFAULT = {detection: 0.3, multi_label: 0.5}; // of a network whose thresholds were not chosen
const byId = (id) => document.getElementById(id);
const state = {model: null, photos: [], current: null, off: new Set(), levels: {}, stream: null};

function tell(text, bad = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("bad", bad);
}

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** The least score of a class: as moved, as chosen for the class, or the kind's own. */
function least(name, kind) {
  const task = state.model.tasks[name];
  return state.levels[name] ?? task.thresholds?.[kind] ?? DEFAULT[task.kind];
}

/** An answer as it is shown: without what lies below the thresholds. */
function shown(name, answer) {
  const task = state.model.tasks[name];
  if (task.kind === "detection") {
    const kept = answer.score.map((_, at) => at).filter((at) => answer.score[at] >= least(name, answer.label[at]));
    return Object.fromEntries(["boxes_xyxy", "label", "score"].map((field) => [field, kept.map((at) => answer[field][at])]));
  }
  if (task.kind === "multi_label") {
    const kept = Object.entries(answer.probability).filter(([tag, value]) => value > least(name, tag));
    return {...answer, tags: Object.fromEntries(kept)};
  }
  return answer;
}

function answers(photo) {
  return Object.entries(photo.answer?.tasks ?? {}).filter(([name]) => !state.off.has(name)).map(([name, answer]) => (
    {name, kind: state.model.tasks[name].kind, task: state.model.tasks[name], answer: shown(name, answer)}));
}

function show() {
  const photo = state.current;
  byId("picture").hidden = !photo || Boolean(state.stream);
  byId("hint").hidden = Boolean(photo) || Boolean(state.stream);
  byId("stage").classList.toggle("full", Boolean(photo) || Boolean(state.stream));
  for (const id of ["save-json", "save-picture"]) byId(id).disabled = !photo?.answer;
  if (!photo) return;
  const found = answers(photo);
  draw(byId("picture"), photo.bitmap, found, Number(byId("opacity").value));
  for (const name of Object.keys(state.model.tasks)) card(name, found.find((each) => each.name === name)?.answer, photo);
  for (const button of byId("strip").children) button.setAttribute("aria-current", button.photo === photo);
}

function rows(name, answer) {
  const task = state.model.tasks[name];
  switch (task.kind) {
    case "detection": return answer.label.map((label, index) => [css(label), label, answer.score[index].toFixed(2)]);
    case "segmentation": return Object.entries(answer.classes).map(([label, {share}]) => (
      [css(label), label, percent(share), false, share])).sort((one, other) => other[4] - one[4]);
    case "classification": return falling(answer.probability).slice(0, 5).map(([label, value]) => [null, label, percent(value)]);
    case "multi_label": return falling(answer.probability).map(([tag, value]) => [null, tag, percent(value), !(tag in answer.tags)]);
    case "regression": return [[null, answer.value.toPrecision(4), answer.unit || ""]];
    case "depth": return [[null, "nearest", `${answer.min_m.toPrecision(3)} m`], [null, "median", `${answer.median_m.toPrecision(3)} m`],
      [null, "farthest", `${answer.max_m.toPrecision(3)} m`]];
    default: return [[null, JSON.stringify(answer).slice(0, 200), ""]];
  }
}

function card(name, answer, photo) {
  const place = byId(`found-${name}`), ms = photo?.answer?.ms?.[name] ?? state.model.tasks[name].ms;
  byId(`ms-${name}`).textContent = ms === undefined ? "" : `${ms.toFixed(0)} ms`;
  const alone = state.model.tasks[name].ms;
  if (alone !== undefined) byId(`ms-${name}`).title = `the pass that it was part of; alone ${alone.toFixed(0)} ms`;
  if (!answer) return place.replaceChildren();
  const lines = rows(name, answer).map(([fill, label, value, no]) => {
    const line = element("li", {className: no ? "no" : ""}, element("i"), element("b", {textContent: label}), element("span", {textContent: value}));
    line.firstChild.style.background = fill ?? "transparent";
    return line;
  });
  place.replaceChildren(...(lines.length ? lines : [element("li", {className: "no"}, element("i"), element("b", {textContent: "nothing above the threshold"}))]));
  return undefined;
}

/** One card for each task: whether it is asked, its threshold, what it found. */
function cards() {
  for (const [name, task] of Object.entries(state.model.tasks)) {
    const box = element("input", {type: "checkbox", checked: true, id: `ask-${name}`});
    const made = element("section", {className: "task", id: `task-${name}`},
      element("h2", {}, element("label", {}, box, name), element("small", {textContent: task.kind.replace("_", "-")}), element("small", {id: `ms-${name}`})));
    box.addEventListener("change", () => {
      state.off[box.checked ? "delete" : "add"](name);
      made.classList.toggle("off", !box.checked);
      const missing = box.checked && state.current?.answer && !(name in state.current.answer.tasks);
      if (missing) question(state.current); else show();
    });
    if (task.kind in DEFAULT) made.append(level(name, task));
    made.append(element("ul", {className: "found", id: `found-${name}`}));
    byId("tasks").append(made);
    card(name, null, null);
  }
}

function level(name, task) {
  const chosen = Object.values(task.thresholds ?? {}), start = chosen.length ? chosen.reduce((a, b) => a + b) / chosen.length : DEFAULT[task.kind];
  const slider = element("input", {type: "range", min: 0.02, max: 0.98, step: 0.01, value: start, id: `level-${name}`});
  slider.setAttribute("aria-label", `least score of ${name}`);
  const value = element("output"), back = element("button", {type: "button", id: `back-${name}`, textContent: "as calibrated"});
  const say = () => {
    const moved = name in state.levels;
    value.textContent = moved ? state.levels[name].toFixed(2) : chosen.length ? "by class" : start.toFixed(2);
    back.hidden = !moved;
  };
  slider.addEventListener("input", () => { state.levels[name] = Number(slider.value); say(); show(); });
  back.addEventListener("click", () => { delete state.levels[name]; slider.value = start; say(); show(); });
  back.textContent = chosen.length ? "as calibrated" : "as before";
  say();
  return element("div", {className: "level"}, element("span", {textContent: "from score"}), slider, value, back);
}

async function question(photo) {
  const names = Object.keys(state.model.tasks).filter((name) => !state.off.has(name));
  if (!names.length) { show(); return; }
  tell("asking …");
  const start = performance.now();
  try {
    photo.answer = await ask(photo.blob, photo.bitmap, names);
    tell(`${photo.answer.width} × ${photo.answer.height} px, ${(performance.now() - start).toFixed(0)} ms in all`);
  } catch (error) {
    photo.answer = null;
    tell(`${photo.name}: ${error.message}`, true);
  }
  if (photo === state.current) show();
}

/** Takes photographs in, one after another, and shows the first of them. */
async function take(files) {
  if (!state.model) return;
  stopCamera();
  for (const [index, blob] of [...files].entries()) {
    const photo = {blob, name: blob.name || "photograph", answer: null};
    try {
      photo.bitmap = await createImageBitmap(blob);
    } catch {
      tell(`${photo.name}: this browser reads no image in it; JPEG, PNG and WebP it does`, true);
      continue;
    }
    state.photos.push(photo);
    if (!index || !state.current) state.current = photo;
    thumbnail(photo);
    show();
    await question(photo);
  }
}

function thumbnail(photo) {
  const canvas = element("canvas", {width: 128, height: 96}), scale = Math.max(128 / photo.bitmap.width, 96 / photo.bitmap.height);
  const size = [photo.bitmap.width * scale, photo.bitmap.height * scale];
  canvas.getContext("2d").drawImage(photo.bitmap, (128 - size[0]) / 2, (96 - size[1]) / 2, ...size);
  const button = element("button", {type: "button", title: photo.name, photo}, canvas);
  button.addEventListener("click", () => { stopCamera(); state.current = photo; show(); if (!photo.answer) question(photo); });
  byId("strip").append(button);
}

async function camera() {
  if (state.stream) {
    const canvas = element("canvas"), video = byId("video");
    [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
    canvas.getContext("2d").drawImage(video, 0, 0);
    const blob = await new Promise((done) => { canvas.toBlob(done, "image/jpeg", 0.92); });
    await take([Object.assign(blob, {name: "camera"})]);
    return;
  }
  try {
    state.stream = await navigator.mediaDevices.getUserMedia({video: {facingMode: "environment"}});
  } catch (error) {
    tell(`no camera: ${error.message ?? "this page needs https or localhost for it"}`, true);
    return;
  }
  byId("video").srcObject = state.stream;
  await byId("video").play();
  byId("video").hidden = false;
  byId("camera").textContent = "Take the picture";
  show();
}

function stopCamera() {
  state.stream?.getTracks().forEach((track) => track.stop());
  state.stream = null;
  byId("video").hidden = true;
  byId("camera").textContent = "Camera";
}

function save(name, blob) {
  const link = element("a", {href: URL.createObjectURL(blob), download: name});
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

const stem = () => state.current.name.replace(/\.[^.]*$/, "") || "photograph";

/** What is shown, without maps of pixels but as the server gave them. */
function saveJson() {
  const {width, height, ms} = state.current.answer;
  const tasks = Object.fromEntries(answers(state.current).map(({name, answer}) => {
    const {map, shade, ...rest} = answer;
    return [name, rest];
  }));
  save(`${stem()}.json`, new Blob([JSON.stringify({image: state.current.name, width, height, tasks, ms}, null, 1)], {type: "application/json"}));
}

function listen() {
  const stage = byId("stage");
  byId("files").addEventListener("change", (event) => { take(event.target.files); event.target.value = ""; });
  byId("camera").addEventListener("click", camera);
  byId("opacity").addEventListener("input", show);
  byId("save-json").addEventListener("click", saveJson);
  byId("save-picture").addEventListener("click", () => byId("picture").toBlob((blob) => save(`${stem()}.overlay.png`, blob)));
  document.addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files].filter((file) => file.type.startsWith("image/"));
    if (files.length) take(files); else tell("the clipboard holds no image", true);
  });
  document.addEventListener("dragover", (event) => { event.preventDefault(); stage.classList.add("over"); });
  document.addEventListener("dragleave", () => stage.classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    stage.classList.remove("over");
    take(event.dataTransfer.files);
  });
}

async function start() {
  listen();
  try {
    state.model = await load();
  } catch (error) {
    byId("about").textContent = "no network";
    tell(error.message, true);
    return;
  }
  indexed(state.model.tasks);
  byId("about").textContent = `${state.model.name}, after stage ${state.model.stage}`;
  for (const [text, href] of state.model.links ?? []) byId("links").append(element("a", {href, textContent: text}));
  cards();
  document.body.dataset.ready = "true";
}

start();
