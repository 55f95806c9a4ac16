// Backend: runs the ONNX file of this folder in the browser; images are not uploaded.
import * as ort from "./ort.mjs";

const GREY = 114 / 255; // padding colour, as in training
const state = {};

/** Loads model.json and model.onnx: {name, stage, tasks: {name: {kind, classes, thresholds}}}. */
export async function loadModel() {
  ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;
  const about = await (await fetch("model.json")).json();
  const file = new Uint8Array(await (await fetch("model.onnx")).arrayBuffer());
  state.session = await ort.InferenceSession.create(file, {executionProviders: ["wasm"], graphOptimizationLevel: "all"});
  state.about = about;
  return {name: about.config, stage: about.stage, tasks: about.tasks};
}

/** Predicts one photograph: {width, height, tasks, ms}; the file computes all tasks, `names` selects some. */
export async function predict(blob, bitmap, names) {
  const {pixels, place} = fitToInput(bitmap, state.about.input);
  const start = performance.now();
  const outputs = await state.session.run({[state.about.input.name]: pixels});
  const ms = performance.now() - start;
  const tasks = {}, times = {};
  for (const name of names) {
    const task = state.about.tasks[name], decodeOutput = DECODERS[task.kind];
    if (!decodeOutput) continue;
    tasks[name] = decodeOutput((field) => outputs[`${name}/${field}`], task, place);
    times[name] = ms;
  }
  return {width: bitmap.width, height: bitmap.height, tasks, ms: times};
}

/** Resizes and pads an image to the input of the network; also returns the placement: input = image * scale + offset. */
function fitToInput(bitmap, input) {
  const channelsFirst = input.axes.indexOf("RGB") === 1;
  const [height, width] = input.size;
  const scale = Math[input.crop ? "max" : "min"](height / bitmap.height, width / bitmap.width);
  const place = {scale, x: (width - bitmap.width * scale) / 2, y: (height - bitmap.height * scale) / 2, width: bitmap.width, height: bitmap.height};
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d", {willReadFrequently: true});
  context.fillStyle = `rgb(${[255, 255, 255].map((white) => Math.round(white * GREY)).join(" ")})`;
  context.fillRect(0, 0, width, height);
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = scale < 0.5 ? "high" : "low"; // averaged down first, else bilinear
  context.drawImage(bitmap, place.x, place.y, bitmap.width * scale, bitmap.height * scale);
  const rgba = context.getImageData(0, 0, width, height).data, count = width * height, data = new Float32Array(3 * count);
  for (let at = 0; at < count; at++) {
    for (let channel = 0; channel < 3; channel++) data[channelsFirst ? channel * count + at : 3 * at + channel] = rgba[4 * at + channel] / 255;
  }
  return {pixels: new ort.Tensor("float32", data, channelsFirst ? [1, 3, height, width] : [1, height, width, 3]), place};
}

/** Maps values from the input's resolution to the image's, by nearest neighbour. */
function atOriginal(values, [, rows, columns], place, Kind) {
  const data = new Kind(place.width * place.height);
  const clampedIndex = (value, length) => Math.min(Math.max(Math.floor(value), 0), length - 1);
  const columnOf = Int32Array.from({length: place.width}, (_, x) => clampedIndex((x + 0.5) * place.scale + place.x, columns));
  for (let y = 0, at = 0; y < place.height; y++) {
    const row = clampedIndex((y + 0.5) * place.scale + place.y, rows) * columns;
    for (let x = 0; x < place.width; x++, at++) data[at] = Number(values[row + columnOf[x]]);
  }
  return {width: place.width, height: place.height, data};
}

const isOutput = (task, name) => !task.removed?.includes(name);
const shares = (task, values) => Object.fromEntries(task.classes.map((name, at) => [name, values[at]])
  .filter(([name]) => isOutput(task, name)).sort((first, second) => second[1] - first[1]));

const DECODERS = {
  segmentation(field, task, place) {
    const map = atOriginal(field("mask").data, field("mask").dims, place, Uint16Array), pixels = new Array(task.classes.length).fill(0);
    for (const kind of map.data) pixels[kind]++;
    const classes = task.classes.map((name, at) => [name, {pixels: pixels[at], share: pixels[at] / map.data.length}]).filter(([, {pixels: count}]) => count);
    return {classes: Object.fromEntries(classes), map};
  },
  detection(field, task, place) {
    const prediction = {boxes_xyxy: [], label: [], score: []}, boxes = field("boxes_xyxy").data;
    field("valid").data.forEach((valid, at) => {
      if (!valid) return;
      const corners = [0, 1, 2, 3].map((edge) => (boxes[4 * at + edge] - (edge % 2 ? place.y : place.x)) / place.scale);
      prediction.boxes_xyxy.push(corners.map((value, edge) => Math.min(Math.max(value, 0), edge % 2 ? place.height : place.width)));
      prediction.label.push(task.classes[Number(field("label").data[at])]);
      prediction.score.push(field("score").data[at]);
    });
    return prediction;
  },
  classification(field, task) {
    const probability = shares(task, field("probability").data);
    return {label: task.classes.filter((name) => isOutput(task, name)).reduce((best, name) => (probability[name] > probability[best] ? name : best)), probability};
  },
  multi_label: (field, task) => ({tags: {}, probability: shares(task, field("probability").data)}),
  regression: (field, task) => ({value: field("value").data[0], unit: Object.values(task.outputs)[0].meaning.replace(/^the number,? ?/, "")}),
  depth(field, task, place) {
    const {data, ...size} = atOriginal(field("depth").data, field("depth").dims, place, Float32Array);
    const sorted = data.slice().sort(), [near, far] = [sorted[0], sorted[sorted.length - 1]];
    const shade = Uint8Array.from(data, (metres) => 255 * (metres - near) / Math.max(far - near, 1e-3));
    return {min_m: near, median_m: sorted[sorted.length >> 1], max_m: far, shade: {...size, data: shade}};
  },
};
