// Draws answers over a photograph, and turns 8-bit PNG files into maps of numbers.

const GOLDEN = 0.618; // turns of the colour circle between two classes: neighbours differ most
const VIRIDIS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];

const indices = new Map(); // name of a class -> its place among those of all tasks, so that it has one colour everywhere

/** Gives every class of the tasks its colour. */
export function indexed(tasks) {
  for (const {classes} of Object.values(tasks)) for (const name of classes) if (!indices.has(name)) indices.set(name, indices.size);
}

/** The RGB colour of a class, by its name. */
function colour(name) {
  const index = indices.get(name) ?? 0;
  const hue = ((index * GOLDEN + 0.02) % 1) * 6, part = hue - Math.floor(hue);
  const high = 255, low = 40, up = Math.round(low + (high - low) * part), down = Math.round(high - (high - low) * part);
  return [[high, up, low], [down, high, low], [low, high, up], [low, down, high], [up, low, high], [high, low, down]][
    Math.floor(hue) % 6];
}

export const css = (name) => (name === "background" ? "transparent" : `rgb(${colour(name).join(" ")})`);

/** The entries of {class: share}, the largest first: an object keeps names of digits in an order of its own. */
export const falling = (shares) => Object.entries(shares).sort((one, other) => other[1] - one[1]);

function shade(level) {
  const at = level / 255 * (VIRIDIS.length - 1), low = Math.min(Math.floor(at), VIRIDIS.length - 2);
  return VIRIDIS[low].map((value, channel) => value + (VIRIDIS[low + 1][channel] - value) * (at - low));
}

function canvasOf(width, height) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  return canvas;
}

/** Reads the numbers of a greyscale PNG file of 8 bits: {width, height, data}. */
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
    const found = paint(map.data[at]);
    if (found) pixels.data.set([...found, 255], 4 * at);
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

/** Draws a photograph and what the tasks say of it.
 *
 * canvas: gets the size of the picture, at most `most` px.  bitmap: the photograph.
 * shown: [{task, kind, answer}], with boxes below their least score left out already.  opacity: of masks and depths.
 */
export function draw(canvas, bitmap, shown, opacity, most = 1920) {
  const scale = Math.min(1, most / Math.max(bitmap.width, bitmap.height));
  const enlarged = Math.max(scale, Math.min(640 / Math.max(bitmap.width, bitmap.height), 8)); // small ones leave no room for words
  const factor = scale < 1 ? scale : Math.max(1, enlarged);
  canvas.width = Math.max(1, Math.round(bitmap.width * factor));
  canvas.height = Math.max(1, Math.round(bitmap.height * factor));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  context.globalAlpha = opacity;
  for (const {kind, answer} of shown) {
    if (kind === "depth" && answer.shade) context.drawImage(layer(answer.shade, shade), 0, 0, canvas.width, canvas.height);
  }
  context.imageSmoothingEnabled = false;
  for (const {kind, answer, task} of shown) {
    if (kind !== "segmentation" || !answer.map) continue;
    const colours = task.classes.map((name) => (name === "background" ? null : colour(name)));
    const picture = layer(answer.map, (value) => colours[value]);
    context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  }
  context.globalAlpha = 1;
  context.imageSmoothingEnabled = true;
  const size = Math.max(11, Math.round(Math.max(canvas.width, canvas.height) / 52));
  context.font = `600 ${size}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  for (const each of shown) if (each.kind === "detection") boxes(context, each, canvas.width / bitmap.width, size);
  caption(context, shown.flatMap(words), size);
}

function boxes(context, {answer}, scale, size) {
  context.lineWidth = Math.max(2, size / 7);
  for (let index = answer.boxes_xyxy.length - 1; index >= 0; index--) { // the best lies on top
    const [left, top, right, bottom] = answer.boxes_xyxy[index].map((edge) => edge * scale);
    const kind = answer.label[index];
    const text = `${answer.label[index]} ${answer.score[index].toFixed(2)}`, wide = context.measureText(text).width + size * 0.7;
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

function words({name, kind, answer}) {
  if (kind === "classification") return [`${answer.label} ${percent(answer.probability[answer.label])}`];
  if (kind === "multi_label") return falling(answer.tags).map(([tag, value]) => `${tag} ${percent(value)}`);
  if (kind === "regression") return [`${name} ${answer.value.toPrecision(3)} ${answer.unit || ""}`.trim()];
  if (kind === "depth") return [`${name} ${answer.min_m.toPrecision(2)} m (dark) to ${answer.max_m.toPrecision(2)} m (bright)`];
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
