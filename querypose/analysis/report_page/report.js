"use strict";
// Everything shown comes from window.REPORT (data.js). Text reaches the page through textContent and attributes alone.
const report = window.REPORT;
const analyzed = report.analyzed ?? [];
const KINDS = ["jitter", "inversion", "swap", "miss", "false positive", "false negative"];
const PALETTE = ["#4c8dff", "#ff8a3d", "#37c98b", "#c77dff", "#ffd23f", "#2ec4d6", "#ff6b9a", "#a3d65c"];
// Of the poses: none is like a color of the legend, so that a good keypoint is not taken for an error.
const POSES = ["#4c8dff", "#2ec4d6", "#a5d8ff", "#7a6bff"];
const byId = (id) => document.getElementById(id);

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  return fill(node, attributes, children);
}

function drawn(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

const loss = (value) => (value < 0.005 ? "0.00" : `−${value.toFixed(2)}`);
const number = (value, digits = 1) => (value === null || value === undefined ? "–" : value.toFixed(digits));
const signed = (value, digits = 2) => (value > 0 ? "+" : "") + number(value, digits);

function table(head, rows, rowClass = () => null, isText = false) {
  const isNumber = (text) => !isText && /^([+-]?\d+(\.\d+)?|–)$/.test(text);
  const cells = (row) => row.map((text) => element("td", { class: isNumber(String(text)) ? "number" : null }, String(text)));
  const body = rows.map((row, index) => element("tr", { class: rowClass(index) }, ...cells(row)));
  const titles = head.map((text, index) => element("th", { class: rows.length && isNumber(String(rows[0][index])) ? "number" : null }, text));
  return element("div", { class: "scroll" },
    element("table", {}, element("thead", {}, element("tr", {}, ...titles)), element("tbody", {}, ...body)));
}

// ---- charts -------------------------------------------------------------------------------------------------------

const dark = window.matchMedia("(prefers-color-scheme: dark)");
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
// plotly.js reads a little markup in texts; names from files have none.
const plain = (value) => Array.isArray(value) ? value.map(plain)
  : typeof value === "string" ? value.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;") : value;

function layoutOf(figure) {
  const axis = { gridcolor: color("line"), zerolinecolor: color("line"), linecolor: color("line"), automargin: true };
  const { xaxis, yaxis, ...rest } = figure.layout;
  return {
    ...rest,
    xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: color("ink"), size: 12 },
    colorway: PALETTE, margin: { l: 44, r: 12, t: 8, b: 40 }, showlegend: figure.data.length > 1,
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" }, hoverlabel: { namelength: -1 },
  };
}

function tracesOf(figure) {
  return figure.data.map((trace) => ({
    ...trace, name: plain(trace.name), x: plain(trace.x), y: plain(trace.y),
    ...(trace.meta?.kind ? { marker: { color: color(trace.meta.kind) } } : {}),
  }));
}

function charts(parent, figures) {
  const grid = element("div", { class: "cards" });
  parent.append(grid);
  for (const figure of figures) {
    const place = element("div", { class: "chart" });
    grid.append(element("div", { class: "card" }, element("h3", {}, figure.title), place));
    const draw = () => Plotly.react(place, tracesOf(figure), layoutOf(figure), { displayModeBar: false, responsive: true });
    draw();
    dark.addEventListener("change", draw);
  }
}

// ---- summary, errors, config --------------------------------------------------------------------------------------

function showSummary() {
  const names = report.runs.map((run) => run.name);
  byId("title").textContent = names.join(" and ");
  document.title = `${names.join(" and ")} · report`;
  const notes = byId("notes");
  notes.hidden = report.notes.length === 0;
  notes.append(...report.notes.map((note) => element("li", {}, note)));
  const section = byId("summary");
  if (report.difference) {
    const { ap, low, high, num_samples: count, runs } = report.difference;
    const verdict = low > 0 || high < 0 ? "The interval does not hold 0." : "The interval holds 0: on these images the two cannot be told apart.";
    section.append(element("p", { class: "lead", id: "difference" },
      `${runs[1]} less ${runs[0]}: ${signed(ap)} AP, 95 % interval ${signed(low)} to ${signed(high)} (paired bootstrap over images, ${count} samples). ${verdict}`));
  }
  const metrics = [...new Set(report.runs.flatMap((run) => Object.keys(run.metrics)))];
  const main = metrics.filter((name) => !/ /.test(name.split("/").pop()));
  if (!main.length) {
    section.append(element("p", { class: "quiet" }, "No evaluation has been written yet."));
    return;
  }
  const rows = main.map((name) => {
    const values = report.runs.map((run) => run.metrics[name]?.value ?? null);
    const change = values.length === 2 && values[0] !== null && values[1] !== null ? [signed(values[1] - values[0])] : values.length === 2 ? ["–"] : [];
    return [name, ...values.map((value) => number(value, 2)), ...change];
  });
  const last = report.runs.map((run) => `${run.name}: ${run.folder}, last evaluation after iteration ${1 + Math.max(-1, ...Object.values(run.metrics).map((metric) => metric.iteration))}`);
  section.append(element("div", { class: "card" }, table(["metric", ...names, ...(names.length === 2 ? ["difference"] : [])], rows),
    ...last.map((text) => element("div", { class: "quiet" }, text))));
}

function showErrors() {
  const section = byId("errors");
  if (!analyzed.length) {
    section.append(element("p", { class: "quiet" }, "There is no error analysis; the notes above say why."));
    return;
  }
  analyzed.forEach((name, index) => {
    const errors = report.errors[index];
    const shares = Object.entries(errors.shares).map(([kind, share]) => `${kind} ${number(share)} %`).join(", ");
    section.append(element("p", {}, element("strong", {}, name),
      `: AP ${number(errors.AP)}, AR ${number(errors.AR)}; ${errors.detections} detections (20 an image) of ${errors.persons} persons in ${errors.images} images: ` +
      `${errors.matched} near a person, ${errors.false_positives} false positives, ${errors.false_negatives} false negatives. Keypoints: ${shares}.`));
  });
  charts(section, report.figures);
  const repairs = element("div", { class: "cards tables" });
  section.append(repairs);
  analyzed.forEach((name, index) => {
    const rows = report.errors[index].repairs.map((repair) =>
      [repair.kind, ...["ap", "ar", "ap_in_turn", "ar_in_turn"].map((key) => number(repair[key]))]);
    repairs.append(element("div", { class: "card" }, element("h3", {}, `${name}: AP and AR if errors were mended, alone and in turn`),
      table(["mended", "AP", "AR", "AP in turn", "AR in turn"], rows)));
  });
}

function showConfig() {
  const section = byId("config");
  const several = report.runs.length > 1;
  const search = element("input", { type: "search", id: "config-search", placeholder: "key or value" });
  const only = element("input", { type: "checkbox", id: "config-differs" });
  only.checked = true;
  const place = element("div", { class: "card" });
  const draw = () => {
    const words = search.value.toLowerCase();
    const rows = report.config.filter((row) => (!only.checked || row.differs) &&
      [row.key, ...row.values].some((text) => String(text).toLowerCase().includes(words)));
    const shown = table(["key", ...report.runs.map((run) => run.name), "default"],
      rows.map((row) => [row.key, ...row.values.map((value) => value ?? "–"), row.default ?? "–"]),
      (index) => (several && rows[index].differs ? "differs" : null), true);
    place.replaceChildren(rows.length ? shown : element("p", { class: "quiet" }, "No key."));
  };
  search.addEventListener("input", draw);
  only.addEventListener("change", draw);
  section.append(element("form", { class: "filters", onsubmit: (event) => event.preventDefault() },
    element("label", {}, "Search", search),
    element("label", { class: "row" }, only, several ? "only what differs between the runs" : "only what differs from the default")), place);
  draw();
}

function showTraining() {
  const section = byId("training");
  if (!report.pictures.length) {
    section.append(element("p", { class: "quiet" }, "The run drew no pictures while it trained; TEST.PICTURES asks for them."));
    return;
  }
  section.append(element("div", { class: "animations" }, ...report.pictures.map((picture) =>
    element("figure", {}, element("img", { src: picture.file, alt: `${picture.name} at every evaluation`, loading: "lazy" }),
      element("figcaption", { class: "quiet" }, `${picture.run}: ${picture.name}`)))));
}

function showAttention() {
  const section = byId("attention");
  if (!report.attention.length) {
    section.append(element("p", { class: "quiet" }, "What the model looked at was not asked for; --attention does."));
    return;
  }
  for (const image of report.attention) {
    section.append(element("div", { class: "card attention" }, element("h3", {}, image.name), ...image.pictures.map((picture) =>
      element("figure", {}, element("figcaption", { class: "quiet" }, picture.title),
        element("div", { class: "scroll" }, element("img", { src: picture.file, alt: `${image.name}: ${picture.title}`, loading: "lazy" }))))));
  }
}

// ---- images -------------------------------------------------------------------------------------------------------

const choice = { kind: "", keypoint: "", size: "", list: "", run: "", sort: "loss", score: report.threshold ?? 0 };
let shown = [];

const isShown = (detection) => detection.score >= choice.score;
const runsOf = (image) => (choice.run === "" ? image.runs : [image.runs[Number(choice.run)]]);

function hasError(image, run) {
  const fits = (person) => person && !person.crowd && (!choice.size || person.size === choice.size);
  const at = choice.keypoint === "" ? null : Number(choice.keypoint);
  if (choice.kind === "false positive") return run.detections.some((detection) => detection.false && isShown(detection));
  if (choice.kind === "false negative") return run.missed.some((person) => fits(image.persons[person]));
  if (!choice.kind) return image.persons.some((person) => fits(person) && (at === null || person.keypoints[at][2] > 0)) || (!choice.size && at === null);
  return run.detections.some((detection) => isShown(detection) && detection.kinds && fits(image.persons[detection.person]) &&
    detection.kinds.some((kind, keypoint) => kind === choice.kind && (at === null || keypoint === at)));
}

const change = (image) => (image.runs.length > 1 ? image.runs[1].loss - image.runs[0].loss : 0);
const ORDERS = {
  loss: ["loss of AP", (image) => -image.runs.at(-1).loss],
  best: ["least loss of AP", (image) => image.runs.at(-1).loss],
  worse: ["became worse", (image) => -change(image)],
  better: ["became better", (image) => change(image)],
};

function pose(keypoints, attributes, kinds = null, tint = null, isDrawn = () => true) {
  const there = keypoints.map((point, index) => isDrawn(point, index));
  const xs = keypoints.filter((_, index) => there[index]).map((point) => point[0]);
  const ys = keypoints.filter((_, index) => there[index]).map((point) => point[1]);
  const extent = xs.length ? Math.hypot(Math.max(...xs) - Math.min(...xs), Math.max(...ys) - Math.min(...ys)) : 0;
  const radius = Math.max(1.2, Math.min(6, extent / 55));
  const group = drawn("g", attributes);
  for (const [one, other] of report.skeleton.edges) {
    if (there[one] && there[other]) {
      group.append(drawn("line", { x1: keypoints[one][0], y1: keypoints[one][1], x2: keypoints[other][0], y2: keypoints[other][1], stroke: tint }));
    }
  }
  keypoints.forEach((point, index) => {
    if (!there[index]) return;
    const kind = kinds?.[index];
    const title = report.skeleton.keypoints[index] + (kind ? `: ${kind}` : "");
    group.append(drawn("circle", { cx: point[0], cy: point[1], r: radius, fill: tint, class: kind && kind !== "good" ? kind : null }, drawn("title", {}, title)));
  });
  return group;
}

function scene(image, run) {
  const svg = drawn("svg", { class: "scene", viewBox: `0 0 ${image.width} ${image.height}`, preserveAspectRatio: "xMidYMid meet" },
    drawn("rect", { class: "none", width: image.width, height: image.height }));
  if (image.file) svg.append(drawn("image", { href: image.file, width: image.width, height: image.height, preserveAspectRatio: "none" }));
  const truth = drawn("g", { class: "truth" });
  image.persons.forEach((person, index) => {
    const group = pose(person.keypoints, { class: run.missed.includes(index) ? "missed" : null }, null, null, (point) => point[2] > 0);
    const [x, y, width, height] = person.box;
    if (person.crowd || run.missed.includes(index)) group.append(drawn("rect", { class: "box", x, y, width, height }));
    truth.append(group);
  });
  const prediction = drawn("g", { class: "prediction" });
  run.detections.forEach((detection, index) => {
    if (isShown(detection)) prediction.append(pose(detection.keypoints, { class: detection.false ? "false" : null }, detection.kinds, POSES[index % POSES.length]));
  });
  svg.append(truth, prediction);
  return svg;
}

function errorsOf(run) {
  const counts = new Map();
  for (const detection of run.detections.filter(isShown)) {
    for (const kind of detection.kinds ?? []) if (kind && kind !== "good") counts.set(kind, (counts.get(kind) ?? 0) + 1);
    if (detection.false) counts.set("false positive", (counts.get("false positive") ?? 0) + 1);
  }
  if (run.missed.length) counts.set("false negative", run.missed.length);
  return [...counts].map(([kind, count]) => `${kind} ${count}`).join(", ") || "no error";
}

function showGallery() {
  const order = ORDERS[choice.sort][1];
  shown = report.images.filter((image) => (!choice.list || image.lists.includes(choice.list)) && runsOf(image).some((run) => hasError(image, run)));
  shown.sort((one, other) => order(one) - order(other));
  byId("count").textContent = `${shown.length} of ${report.images.length} images. Click one, or step through them with the arrow keys.`;
  byId("gallery").replaceChildren(...shown.map((image, index) => element("button", { type: "button", class: "thumb", "data-image": image.id, onclick: () => openViewer(index) },
    element("div", { class: "scenes" }, ...image.runs.map((run) => scene(image, run))),
    element("div", { class: "caption" }, element("span", { title: image.name }, image.name),
      element("span", { class: "quiet", title: "AP that this image alone costs" }, image.runs.map((run) => loss(run.loss)).join(" | "))))));
}

function select(label, key, options) {
  const node = element("select", { id: `filter-${key}` }, ...options.map(([value, text]) => element("option", { value }, text)));
  node.value = choice[key];
  node.addEventListener("change", () => { choice[key] = node.value; showGallery(); });
  return element("label", {}, label, node);
}

function showImages() {
  if (!report.images.length) {
    byId("filters").hidden = true;
    byId("count").textContent = "There are no images to show.";
    return;
  }
  const several = analyzed.length > 1;
  byId("gallery").classList.toggle("pairs", several);
  const scores = report.images.flatMap((image) => image.runs.flatMap((run) => run.detections.map((detection) => detection.score)));
  const [low, high] = [scores.reduce((a, b) => Math.min(a, b), 0), scores.reduce((a, b) => Math.max(a, b), choice.score)];
  const slider = element("input", { type: "range", id: "filter-score", min: low, max: high, step: (high - low) / 200 || 1 });
  slider.value = choice.score;
  const label = element("span", {}, `Least score: ${number(choice.score, 2)}`);
  slider.addEventListener("input", () => { choice.score = Number(slider.value); label.textContent = `Least score: ${number(choice.score, 2)}`; showGallery(); });
  byId("filters").append(
    select("Kind of error", "kind", [["", "any"], ...KINDS.map((kind) => [kind, kind])]),
    select("Keypoint", "keypoint", [["", "any"], ...report.skeleton.keypoints.map((name, index) => [String(index), name])]),
    select("Size of the person", "size", [["", "any"], ...["small", "medium", "large"].map((size) => [size, size])]),
    select("List", "list", [["", "all"], ["worst", "worst"], ["best", "best"], ...(several ? [["changed", "most changed"]] : [])]),
    ...(several ? [select("Errors of", "run", [["", "any run"], ...analyzed.map((name, index) => [String(index), name])])] : []),
    select("Sort by", "sort", Object.entries(ORDERS).filter(([key]) => several || !["worse", "better"].includes(key)).map(([key, [text]]) => [key, text])),
    element("label", {}, label, slider));
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  showGallery();
}

// ---- viewer -------------------------------------------------------------------------------------------------------

const viewer = byId("viewer");
let position = 0;
let view = null;

function openViewer(index) {
  position = index;
  if (!viewer.open) viewer.showModal();
  const image = shown[position];
  view = [0, 0, image.width, image.height];
  byId("viewer-title").textContent = `${position + 1} / ${shown.length} · ${image.name}`;
  byId("panels").replaceChildren(...image.runs.map((run, index) => {
    const svg = scene(image, run);
    makeMovable(svg);
    return element("figure", { class: "panel" }, element("figcaption", {}, element("strong", {}, analyzed[index]),
      ` · costs ${number(Math.max(run.loss, 0), 2)} AP · ${errorsOf(run)}` + (image.file ? "" : " · the image cannot be read")), svg);
  }));
}

function step(by) {
  if (shown.length) openViewer((position + by + shown.length) % shown.length);
}

function setView(next) {
  view = next;
  for (const svg of byId("panels").querySelectorAll("svg")) svg.setAttribute("viewBox", view.join(" "));
}

function zoom(factor, x = view[0] + view[2] / 2, y = view[1] + view[3] / 2) {
  const image = shown[position];
  const limited = Math.min(Math.max(factor, image.width / 40 / view[2]), image.width / view[2]);
  const scale = Number.isFinite(limited) && limited > 0 ? limited : 1;
  setView([x - (x - view[0]) * scale, y - (y - view[1]) * scale, view[2] * scale, view[3] * scale]);
}

function makeMovable(svg) {
  const at = (event) => new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
  let start = null;
  svg.addEventListener("wheel", (event) => { event.preventDefault(); const { x, y } = at(event); zoom(event.deltaY > 0 ? 1.25 : 0.8, x, y); }, { passive: false });
  svg.addEventListener("pointerdown", (event) => { start = at(event); svg.setPointerCapture(event.pointerId); });
  svg.addEventListener("pointermove", (event) => {
    if (!start) return;
    const { x, y } = at(event);
    setView([view[0] + start.x - x, view[1] + start.y - y, view[2], view[3]]);
  });
  svg.addEventListener("pointerup", () => { start = null; });
}

function toggle(what) {
  const hidden = document.body.classList.toggle(`no-${what}`);
  viewer.querySelector(`[data-do=${what}]`).setAttribute("aria-pressed", String(!hidden));
}

const ACTIONS = {
  previous: () => step(-1), next: () => step(1), prediction: () => toggle("prediction"), truth: () => toggle("truth"),
  in: () => zoom(0.8), out: () => zoom(1.25), whole: () => setView([0, 0, shown[position].width, shown[position].height]), close: () => viewer.close(),
};
const KEYS = { ArrowLeft: "previous", ArrowRight: "next", p: "prediction", t: "truth", "+": "in", "=": "in", "-": "out", 0: "whole" };
for (const button of viewer.querySelectorAll("button")) button.addEventListener("click", () => ACTIONS[button.dataset.do]());
document.addEventListener("keydown", (event) => {
  const action = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!action || event.ctrlKey || event.metaKey || event.altKey) return;
  if (!viewer.open) {
    // The arrow keys open the first image, except where they move something else.
    if (!["previous", "next"].includes(action) || !shown.length || event.target.closest("input, select, .chart")) return;
    openViewer(0);
  } else {
    ACTIONS[action]();
  }
  event.preventDefault();
});

showSummary();
charts(byId("curves"), report.curves);
if (!report.curves.length) byId("curves").append(element("p", { class: "quiet" }, "Nothing has been written yet."));
showErrors();
showImages();
showAttention();
showTraining();
showConfig();
document.documentElement.dataset.ready = "true";
