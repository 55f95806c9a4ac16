// Answers from the server that the page came from.
import {readMap} from "./drawing.js";

export const LEAST = 0.02; // of the boxes that are asked for; the page shows those above its thresholds

/** What the network does: {name, stage, tasks: {name: {kind, classes, thresholds, ms}}, links}. */
export async function load() {
  const model = await said(await fetch("model"));
  return {...model, links: [["HTTP API", "docs"]]};
}

/** Asks about one photograph: {width, height, tasks, ms}; `names` are the tasks. */
export async function ask(blob, bitmap, names) {
  const query = new URLSearchParams({tasks: names.join(","), threshold: LEAST, shades: true});
  const headers = {"Content-Type": blob.type || "application/octet-stream"};
  const answer = await said(await fetch(`predict?${query}`, {method: "POST", body: blob, headers}));
  for (const each of Object.values(answer.tasks)) {
    if (each.mask) each.map = await readMap(each.mask);
    if (each.shade) each.shade = await readMap(each.shade);
  }
  return answer;
}

async function said(response) {
  const text = await response.text();
  let answer = {error: text || response.statusText};
  try { answer = JSON.parse(text); } catch { /* not JSON: shown as it is */ }
  if (!response.ok) throw new Error(answer.error || response.statusText);
  return answer;
}
