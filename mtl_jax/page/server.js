// Backend: sends images to the server of this page.
import {readMap} from "./drawing.js";

export const MIN_SCORE = 0.02; // of requested boxes; the page filters them by its thresholds

/** Loads the description of the network: {name, stage, tasks: {name: {kind, classes, thresholds, ms}}, links}. */
export async function loadModel() {
  const model = await parseResponse(await fetch("model"));
  return {...model, links: [["HTTP API", "docs"]]};
}

/** Predicts one photograph by the tasks `names`: {width, height, tasks, ms}. */
export async function predict(blob, bitmap, names) {
  const query = new URLSearchParams({tasks: names.join(","), threshold: MIN_SCORE, shades: true});
  const headers = {"Content-Type": blob.type || "application/octet-stream"};
  const prediction = await parseResponse(await fetch(`predict?${query}`, {method: "POST", body: blob, headers}));
  for (const output of Object.values(prediction.tasks)) {
    if (output.mask) output.map = await readMap(output.mask);
    if (output.shade) output.shade = await readMap(output.shade);
  }
  return prediction;
}

async function parseResponse(response) {
  const text = await response.text();
  let body = {error: text || response.statusText};
  try { body = JSON.parse(text); } catch { /* not JSON: the text is the message */ }
  if (!response.ok) throw new Error(body.error || response.statusText);
  return body;
}
