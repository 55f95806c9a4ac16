// Answers from the ONNX file beside the page, computed in this browser: nothing leaves it.
import * as ort from "./ort.mjs";

const GREY = 114 / 255; // what surrounds an image, as in training
const state = {};

/** Opens model.json and model.onnx: {name, stage, tasks: {name: {kind, classes, thresholds}}}. */
export async function load() {
  ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;
  const about = await (await fetch("model.json")).json();
  const file = new Uint8Array(await (await fetch("model.onnx")).arrayBuffer());
  state.session = await ort.InferenceSession.create(file, {executionProviders: ["wasm"], graphOptimizationLevel: "all"});
  state.about = about;
  return {name: about.config, stage: about.stage, tasks: about.tasks};
}

/** Asks about one photograph: {width, height, tasks, ms}; the file answers for all its tasks, `names` are kept. */
export async function ask(blob, bitmap, names) {
  const {pixels, place} = placed(bitmap, state.about.input);
  const start = performance.now();
  const found = await state.session.run({[state.about.input.name]: pixels});
  const ms = performance.now() - start;
  const tasks = {}, times = {};
  for (const name of names) {
    const task = state.about.tasks[name], read = READ[task.kind];
    if (!read) continue;
    tasks[name] = read((field) => found[`${name}/${field}`], task, place);
    times[name] = ms;
  }
  return {width: bitmap.width, height: bitmap.height, tasks, ms: times};
}

/** The image as the network takes it, and where it went: input = image * scale + offset. */
function placed(bitmap, input) {
  const first = input.axes.indexOf("RGB") === 1;
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
    for (let channel = 0; channel < 3; channel++) data[first ? channel * count + at : 3 * at + channel] = rgba[4 * at + channel] / 255;
  }
  return {pixels: new ort.Tensor("float32", data, first ? [1, 3, height, width] : [1, height, width, 3]), place};
}

/** Looks up, for every pixel of the image, the input's pixel that holds its centre. */
function atOriginal(values, [, rows, columns], place, Kind) {
  const data = new Kind(place.width * place.height);
  const within = (value, most) => Math.min(Math.max(Math.floor(value), 0), most - 1);
  const across = Int32Array.from({length: place.width}, (_, x) => within((x + 0.5) * place.scale + place.x, columns));
  for (let y = 0, at = 0; y < place.height; y++) {
    const row = within((y + 0.5) * place.scale + place.y, rows) * columns;
    for (let x = 0; x < place.width; x++, at++) data[at] = Number(values[row + across[x]]);
  }
  return {width: place.width, height: place.height, data};
}

const shares = (task, values) => Object.fromEntries(task.classes.map((name, at) => [name, values[at]])
  .sort((one, other) => other[1] - one[1]));

const READ = {
  segmentation(field, task, place) {
    const map = atOriginal(field("mask").data, field("mask").dims, place, Uint16Array), pixels = new Array(task.classes.length).fill(0);
    for (const kind of map.data) pixels[kind]++;
    const classes = task.classes.map((name, at) => [name, {pixels: pixels[at], share: pixels[at] / map.data.length}]).filter((each) => each[1].pixels);
    return {classes: Object.fromEntries(classes), map};
  },
  detection(field, task, place) {
    const answer = {boxes_xyxy: [], label: [], score: []}, boxes = field("boxes_xyxy").data;
    field("valid").data.forEach((valid, at) => {
      if (!valid) return;
      const moved = [0, 1, 2, 3].map((edge) => (boxes[4 * at + edge] - (edge % 2 ? place.y : place.x)) / place.scale);
      answer.boxes_xyxy.push(moved.map((value, edge) => Math.min(Math.max(value, 0), edge % 2 ? place.height : place.width)));
      answer.label.push(task.classes[Number(field("label").data[at])]);
      answer.score.push(field("score").data[at]);
    });
    return answer;
  },
  classification(field, task) {
    const probability = shares(task, field("probability").data);
    return {label: task.classes.reduce((best, name) => (probability[name] > probability[best] ? name : best)), probability};
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
