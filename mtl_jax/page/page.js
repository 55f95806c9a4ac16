// The page: photographs, their predictions, thresholds, and downloads.
import {predict, loadModel} from "./backend.js";
import {css, draw, sortedByValue, assignColours, percent} from "./drawing.js";

const DEFAULT = {detection: 0.3, multi_label: 0.5}; // for a network without calibrated thresholds
const byId = (id) => document.getElementById(id);
const state = {model: null, photos: [], current: null, off: new Set(), levels: {}, stream: null};

function showStatus(text, bad = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("bad", bad);
}

function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

/** Returns the threshold of a class: from the slider, as calibrated, or the default of the task kind. */
function threshold(name, kind) {
  const task = state.model.tasks[name];
  return state.levels[name] ?? task.thresholds?.[kind] ?? DEFAULT[task.kind];
}

/** Removes boxes and tags below the thresholds from a prediction. */
function filterByThreshold(name, prediction) {
  const task = state.model.tasks[name];
  if (task.kind === "detection") {
    const indices = prediction.score.map((_, at) => at).filter((at) => prediction.score[at] >= threshold(name, prediction.label[at]));
    return Object.fromEntries(["boxes_xyxy", "label", "score"].map((field) => [field, indices.map((at) => prediction[field][at])]));
  }
  if (task.kind === "multi_label") {
    const tags = Object.entries(prediction.probability).filter(([tag, value]) => value > threshold(name, tag));
    return {...prediction, tags: Object.fromEntries(tags)};
  }
  return prediction;
}

function visiblePredictions(photo) {
  return Object.entries(photo.prediction?.tasks ?? {}).filter(([name]) => !state.off.has(name)).map(([name, prediction]) => (
    {name, kind: state.model.tasks[name].kind, task: state.model.tasks[name], prediction: filterByThreshold(name, prediction)}));
}

function show() {
  const photo = state.current;
  byId("picture").hidden = !photo || Boolean(state.stream);
  byId("hint").hidden = Boolean(photo) || Boolean(state.stream);
  byId("stage").classList.toggle("full", Boolean(photo) || Boolean(state.stream));
  for (const id of ["save-json", "save-picture"]) byId(id).disabled = !photo?.prediction;
  if (!photo) return;
  const visible = visiblePredictions(photo);
  draw(byId("picture"), photo.bitmap, visible, Number(byId("opacity").value));
  for (const name of Object.keys(state.model.tasks)) card(name, visible.find((entry) => entry.name === name)?.prediction, photo);
  for (const button of byId("strip").children) button.setAttribute("aria-current", button.photo === photo);
}

function rows(name, prediction) {
  const task = state.model.tasks[name];
  switch (task.kind) {
    case "detection": return prediction.label.map((label, index) => [css(label), label, prediction.score[index].toFixed(2)]);
    case "segmentation": return Object.entries(prediction.classes).map(([label, {share}]) => (
      [css(label), label, percent(share), false, share])).sort((first, second) => second[4] - first[4]);
    case "classification": return sortedByValue(prediction.probability).slice(0, 5).map(([label, value]) => [null, label, percent(value)]);
    case "multi_label": return sortedByValue(prediction.probability).map(([tag, value]) => [null, tag, percent(value), !(tag in prediction.tags)]);
    case "regression": return [[null, prediction.value.toPrecision(4), prediction.unit || ""]];
    case "depth": return [[null, "nearest", `${prediction.min_m.toPrecision(3)} m`], [null, "median", `${prediction.median_m.toPrecision(3)} m`],
      [null, "farthest", `${prediction.max_m.toPrecision(3)} m`]];
    default: return [[null, JSON.stringify(prediction).slice(0, 200), ""]];
  }
}

function card(name, prediction, photo) {
  const place = byId(`found-${name}`), ms = photo?.prediction?.ms?.[name] ?? state.model.tasks[name].ms;
  byId(`ms-${name}`).textContent = ms === undefined ? "" : `${ms.toFixed(0)} ms`;
  const single = state.model.tasks[name].ms;
  if (single !== undefined) byId(`ms-${name}`).title = `duration of the forward pass; ${single.toFixed(0)} ms for this task alone`;
  if (!prediction) return place.replaceChildren();
  const lines = rows(name, prediction).map(([fill, label, value, no]) => {
    const line = element("li", {className: no ? "no" : ""}, element("i"), element("b", {textContent: label}), element("span", {textContent: value}));
    line.firstChild.style.background = fill ?? "transparent";
    return line;
  });
  place.replaceChildren(...(lines.length ? lines : [element("li", {className: "no"}, element("i"), element("b", {textContent: "nothing above the threshold"}))]));
  return undefined;
}

/** Creates a card for each task: a switch, its threshold, and its predictions. */
function cards() {
  for (const [name, task] of Object.entries(state.model.tasks)) {
    const box = element("input", {type: "checkbox", checked: true, id: `ask-${name}`});
    const section = element("section", {className: "task", id: `task-${name}`},
      element("h2", {}, element("label", {}, box, name), element("small", {textContent: task.kind.replace("_", "-")}), element("small", {id: `ms-${name}`})));
    box.addEventListener("change", () => {
      state.off[box.checked ? "delete" : "add"](name);
      section.classList.toggle("off", !box.checked);
      const missing = box.checked && state.current?.prediction && !(name in state.current.prediction.tasks);
      if (missing) requestPrediction(state.current); else show();
    });
    if (task.kind in DEFAULT) section.append(level(name, task));
    section.append(element("ul", {className: "found", id: `found-${name}`}));
    byId("tasks").append(section);
    card(name, null, null);
  }
}

function level(name, task) {
  const calibrated = Object.values(task.thresholds ?? {}), start = calibrated.length ? calibrated.reduce((a, b) => a + b) / calibrated.length : DEFAULT[task.kind];
  const slider = element("input", {type: "range", min: 0.02, max: 0.98, step: 0.01, value: start, id: `level-${name}`});
  slider.setAttribute("aria-label", `threshold of ${name}`);
  const value = element("output"), back = element("button", {type: "button", id: `back-${name}`, textContent: "as calibrated"});
  const update = () => {
    const moved = name in state.levels;
    value.textContent = moved ? state.levels[name].toFixed(2) : calibrated.length ? "by class" : start.toFixed(2);
    back.hidden = !moved;
  };
  slider.addEventListener("input", () => { state.levels[name] = Number(slider.value); update(); show(); });
  back.addEventListener("click", () => { delete state.levels[name]; slider.value = start; update(); show(); });
  back.textContent = calibrated.length ? "as calibrated" : "as before";
  update();
  return element("div", {className: "level"}, element("span", {textContent: "from score"}), slider, value, back);
}

async function requestPrediction(photo) {
  const names = Object.keys(state.model.tasks).filter((name) => !state.off.has(name));
  if (!names.length) { show(); return; }
  showStatus("running …");
  const start = performance.now();
  try {
    photo.prediction = await predict(photo.blob, photo.bitmap, names);
    photo.status = `${photo.prediction.width} × ${photo.prediction.height} px, ${(performance.now() - start).toFixed(0)} ms in all`;
    showStatus(state.current.status ?? photo.status); // of the photograph that is shown
  } catch (error) {
    photo.prediction = null;
    showStatus(`${photo.name}: ${error.message}`, true);
  }
  if (photo === state.current) show();
}

/** Loads photographs one after another and shows the first one. */
async function addFiles(files) {
  if (!state.model) return;
  stopCamera();
  for (const [index, blob] of [...files].entries()) {
    const photo = {blob, name: blob.name || "photograph", prediction: null};
    try {
      photo.bitmap = await createImageBitmap(blob);
    } catch {
      showStatus(`${photo.name}: this browser reads no image in it; use JPEG, PNG or WebP`, true);
      continue;
    }
    state.photos.push(photo);
    if (!index || !state.current) state.current = photo;
    thumbnail(photo);
    show();
    await requestPrediction(photo);
  }
}

function thumbnail(photo) {
  const canvas = element("canvas", {width: 128, height: 96}), scale = Math.max(128 / photo.bitmap.width, 96 / photo.bitmap.height);
  const size = [photo.bitmap.width * scale, photo.bitmap.height * scale];
  canvas.getContext("2d").drawImage(photo.bitmap, (128 - size[0]) / 2, (96 - size[1]) / 2, ...size);
  const button = element("button", {type: "button", title: photo.name, photo}, canvas);
  button.addEventListener("click", () => selectPhoto(photo));
  byId("strip").append(button);
}

function selectPhoto(photo) {
  stopCamera();
  state.current = photo;
  show();
  if (photo.prediction) showStatus(photo.status);
  else requestPrediction(photo);
}

async function camera() {
  if (state.stream) {
    const canvas = element("canvas"), video = byId("video");
    [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
    canvas.getContext("2d").drawImage(video, 0, 0);
    const blob = await new Promise((resolve) => { canvas.toBlob(resolve, "image/jpeg", 0.92); });
    await addFiles([Object.assign(blob, {name: "camera"})]);
    return;
  }
  try {
    state.stream = await navigator.mediaDevices.getUserMedia({video: {facingMode: "environment"}});
  } catch (error) {
    showStatus(`no camera: ${error.message ?? "this page needs https or localhost for it"}`, true);
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

/** Downloads the visible predictions as JSON, without decoded maps. */
function saveJson() {
  const {width, height, ms} = state.current.prediction;
  const tasks = Object.fromEntries(visiblePredictions(state.current).map(({name, prediction}) => {
    const {map, shade, ...fields} = prediction;
    return [name, fields];
  }));
  save(`${stem()}.json`, new Blob([JSON.stringify({image: state.current.name, width, height, tasks, ms}, null, 1)], {type: "application/json"}));
}

function listen() {
  const stage = byId("stage");
  byId("files").addEventListener("change", (event) => { addFiles(event.target.files); event.target.value = ""; });
  byId("camera").addEventListener("click", camera);
  byId("opacity").addEventListener("input", show);
  byId("save-json").addEventListener("click", saveJson);
  byId("save-picture").addEventListener("click", () => byId("picture").toBlob((blob) => save(`${stem()}.overlay.png`, blob)));
  document.addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files].filter((file) => file.type.startsWith("image/"));
    if (files.length) addFiles(files); else showStatus("the clipboard holds no image", true);
  });
  document.addEventListener("dragover", (event) => { event.preventDefault(); stage.classList.add("over"); });
  document.addEventListener("dragleave", () => stage.classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    stage.classList.remove("over");
    addFiles(event.dataTransfer.files);
  });
}

async function start() {
  listen();
  try {
    state.model = await loadModel();
  } catch (error) {
    byId("about").textContent = "no network";
    showStatus(error.message, true);
    return;
  }
  assignColours(state.model.tasks);
  byId("about").textContent = `${state.model.name}, after stage ${state.model.stage}`;
  for (const [text, href] of state.model.links ?? []) byId("links").append(element("a", {href, textContent: text}));
  cards();
  document.body.dataset.ready = "true";
}

start();
