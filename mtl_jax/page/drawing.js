// Draws predictions over a photograph, and decodes 8-bit PNG files to maps.

const GOLDEN = 0.618; // step between the hues of consecutive classes, in turns
const VIRIDIS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];

const indices = new Map(); // class name -> index over all tasks, so that a class has the same colour everywhere

/** Assigns a colour to every class of the tasks. */
export function assignColours(tasks) {
  for (const {classes} of Object.values(tasks)) for (const name of classes) if (!indices.has(name)) indices.set(name, indices.size);
}

/** Returns the RGB colour of a class. */
function colour(name) {
  const index = indices.get(name) ?? 0;
  const hue = ((index * GOLDEN + 0.02) % 1) * 6, fraction = hue - Math.floor(hue);
  const high = 255, low = 40, up = Math.round(low + (high - low) * fraction), down = Math.round(high - (high - low) * fraction);
  return [[high, up, low], [down, high, low], [low, high, up], [low, down, high], [up, low, high], [high, low, down]][
    Math.floor(hue) % 6];
}

export const css = (name) => (name === "background" ? "transparent" : `rgb(${colour(name).join(" ")})`);

/** Returns the entries of {class: share} in descending order; objects reorder keys that are digits. */
export const sortedByValue = (shares) => Object.entries(shares).sort((first, second) => second[1] - first[1]);

function shade(level) {
  const at = level / 255 * (VIRIDIS.length - 1), low = Math.min(Math.floor(at), VIRIDIS.length - 2);
  return VIRIDIS[low].map((value, channel) => value + (VIRIDIS[low + 1][channel] - value) * (at - low));
}

function canvasOf(width, height) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  return canvas;
}

/** Decodes an 8-bit greyscale PNG file: {width, height, data}. */
export async function readMap(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  const canvas = canvasOf(image.naturalWidth, image.naturalHeight);
  const context = canvas.getContext("2d", {willReadFrequently: true});
  context.drawImage(image, 0, 0);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
  const data = new Uint8Array(canvas.width * canvas.height);
  for (let at = 0; at < data.length; at++) data[at] = pixels[4 * at];
  return {width: canvas.width, height: canvas.height, data};
}

function layer(map, paint) {
  const canvas = canvasOf(map.width, map.height), context = canvas.getContext("2d");
  const pixels = context.createImageData(map.width, map.height);
  for (let at = 0; at < map.data.length; at++) {
    const rgb = paint(map.data[at]);
    if (rgb) pixels.data.set([...rgb, 255], 4 * at);
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

/** Draws a photograph with its predictions.
 *
 * canvas: resized to the picture, at most `maxSize` px.  bitmap: the photograph.
 * shown: [{task, kind, prediction}], without boxes below the threshold.  opacity: of masks and depths.
 */
export function draw(canvas, bitmap, shown, opacity, maxSize = 1920) {
  const scale = Math.min(1, maxSize / Math.max(bitmap.width, bitmap.height));
  const enlarged = Math.max(scale, Math.min(640 / Math.max(bitmap.width, bitmap.height), 8)); // small images leave no room for text
  const factor = scale < 1 ? scale : Math.max(1, enlarged);
  canvas.width = Math.max(1, Math.round(bitmap.width * factor));
  canvas.height = Math.max(1, Math.round(bitmap.height * factor));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  context.globalAlpha = opacity;
  for (const {kind, prediction} of shown) {
    if (kind === "depth" && prediction.shade) context.drawImage(layer(prediction.shade, shade), 0, 0, canvas.width, canvas.height);
  }
  context.imageSmoothingEnabled = false;
  for (const {kind, prediction, task} of shown) {
    if (kind !== "segmentation" || !prediction.map) continue;
    const colours = task.classes.map((name) => (name === "background" ? null : colour(name)));
    const picture = layer(prediction.map, (value) => colours[value]);
    context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  }
  context.globalAlpha = 1;
  context.imageSmoothingEnabled = true;
  const size = Math.max(11, Math.round(Math.max(canvas.width, canvas.height) / 52));
  context.font = `600 ${size}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  for (const entry of shown) if (entry.kind === "detection") boxes(context, entry, canvas.width / bitmap.width, size);
  caption(context, shown.flatMap(captionLines), size);
}

function boxes(context, {prediction}, scale, size) {
  context.lineWidth = Math.max(2, size / 7);
  for (let index = prediction.boxes_xyxy.length - 1; index >= 0; index--) { // the highest score on top
    const [left, top, right, bottom] = prediction.boxes_xyxy[index].map((edge) => edge * scale);
    const kind = prediction.label[index];
    const text = `${prediction.label[index]} ${prediction.score[index].toFixed(2)}`, wide = context.measureText(text).width + size * 0.7;
    context.strokeStyle = context.fillStyle = css(kind);
    context.strokeRect(left, top, right - left, bottom - top);
    const height = size * 1.5, above = top >= height ? top - height : top;
    const at = Math.max(0, Math.min(left - context.lineWidth / 2, context.canvas.width - wide));
    context.fillRect(at, above, wide, height);
    const [red, green, blue] = colour(kind);
    context.fillStyle = 0.3 * red + 0.59 * green + 0.11 * blue > 140 ? "#000" : "#fff";
    context.fillText(text, at + size * 0.35, above + height / 2);
  }
}

function captionLines({name, kind, prediction}) {
  if (kind === "classification") return [`${prediction.label} ${percent(prediction.probability[prediction.label])}`];
  if (kind === "multi_label") return sortedByValue(prediction.tags).map(([tag, value]) => `${tag} ${percent(value)}`);
  if (kind === "regression") return [`${name} ${prediction.value.toPrecision(3)} ${prediction.unit || ""}`.trim()];
  if (kind === "depth") return [`${name} ${prediction.min_m.toPrecision(2)} m (dark) to ${prediction.max_m.toPrecision(2)} m (bright)`];
  return [];
}

function caption(context, lines, size) {
  if (!lines.length) return;
  const wide = Math.max(...lines.map((line) => context.measureText(line).width)) + size, high = lines.length * size * 1.4 + size * 0.6;
  context.fillStyle = "rgb(255 255 255 / 0.85)";
  context.fillRect(size * 0.5, size * 0.5, wide, high);
  context.fillStyle = "#111";
  lines.forEach((line, row) => context.fillText(line, size, size * (1.5 + 1.4 * row)));
}

export const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)}%`;
