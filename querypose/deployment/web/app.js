// Finds poses in photos and the pictures of a webcam, by the exported model, in this page alone.

const COLORS = ["#4aa3ff", "#ff9a3c", "#5fd068", "#f0559f", "#f5d547", "#9b74ff", "#3fd2c7", "#ff6b57"];
// Larger pictures are made smaller first: the memory of a page is small.
const MAX_SIDE = 1600;

const element = (id) => document.getElementById(id);
const canvas = element("canvas");
const context = canvas.getContext("2d", { willReadFrequently: true });
const state = { picture: null, poses: null, stream: null, busy: false };

const info = await (await fetch("model.json")).json();
element("title").textContent = `${info.architecture}: ${info.keypoints.length} keypoints (${info.skeleton})`;

let session = null;
let ort = null;
const ready = open();
// For tests and for the console: the poses of a canvas, an image or a URL, in its pixels.
window.querypose = { ready, find: async (source) => { await ready; return find(await pixelsOf(source)); } };
ready.then(() => say("Ready."), (error) => say(`The model cannot be loaded: ${error.message}`, true));

async function open() {
  const adapter = "gpu" in navigator ? await navigator.gpu.requestAdapter().catch(() => null) : null;
  if (adapter !== null) {
    try {
      return await start("ort.webgpu.min.mjs", ["webgpu", "wasm"], "WebGPU");
    } catch (error) {
      console.warn("The model does not run on WebGPU; WebAssembly is used.", error);
      return start("ort.webgpu.min.mjs", ["wasm"], "WebAssembly (WebGPU refused the model)");
    }
  }
  return start("ort.wasm.min.mjs", ["wasm"], "WebAssembly (no WebGPU here)");
}

async function start(file, executionProviders, name) {
  ort = await import(`./runtime/${file}`);
  ort.env.wasm.wasmPaths = new URL("runtime/", location.href).href;
  ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;
  session = await ort.InferenceSession.create("model.onnx", { executionProviders, logSeverityLevel: 3 });
  await find(new ImageData(32, 32)); // some operators are refused only when they run
  element("backend").textContent = name;
}

async function pixelsOf(source) {
  if (typeof source === "string") source = await createImageBitmap(await (await fetch(source)).blob());
  const width = source.videoWidth || source.width;
  const height = source.videoHeight || source.height;
  const scale = Math.min(1, MAX_SIDE / Math.max(width, height));
  const copy = new OffscreenCanvas(Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale)));
  const drawing = copy.getContext("2d", { willReadFrequently: true });
  drawing.drawImage(source, 0, 0, copy.width, copy.height);
  return drawing.getImageData(0, 0, copy.width, copy.height);
}

async function find(image) {
  const { width, height, data } = image;
  const rgb = new Uint8Array(width * height * 3);
  for (let from = 0, to = 0; from < data.length; from += 4) {
    rgb[to++] = data[from]; rgb[to++] = data[from + 1]; rgb[to++] = data[from + 2];
  }
  const feeds = { images: new ort.Tensor("uint8", rgb, [1, height, width, 3]) };
  if (info.top_down) feeds.persons = new ort.Tensor("float32", new Float32Array([0, 0, width, height]), [1, 4]);
  else feeds.sizes = new ort.Tensor("int64", BigInt64Array.from([BigInt(height), BigInt(width)]), [1, 2]);
  const start = performance.now();
  const { scores, keypoints } = await session.run(feeds);
  const milliseconds = performance.now() - start;
  const count = info.keypoints.length;
  const poses = Array.from(scores.data).map((score, index) => ({
    score,
    keypoints: Array.from({ length: count }, (_, k) => {
      const first = 3 * (index * count + k);
      return Array.from(keypoints.data.subarray(first, first + 3));
    }),
  }));
  return { poses: poses.filter((pose) => Number.isFinite(pose.score)), milliseconds, width, height };
}

async function show(source) {
  if (state.busy) return;
  state.busy = true;
  try {
    const picture = await pixelsOf(source);
    await ready;
    if (!state.stream) say("Looking for persons …");
    const found = await find(picture);
    Object.assign(state, { picture, poses: found.poses });
    element("time").textContent = `${found.milliseconds.toFixed(0)} ms`;
    element("hint").hidden = true;
    draw();
    if (!state.stream) say("Done.");
  } catch (error) {
    say(`This picture cannot be used: ${error.message}`, true);
  } finally {
    state.busy = false;
  }
}

function draw() {
  if (!state.picture) return;
  const { width, height } = state.picture;
  canvas.width = width; canvas.height = height;
  context.putImageData(state.picture, 0, 0);
  const least = Number(element("threshold").value);
  const shown = state.poses.filter((pose) => pose.score >= least);
  const line = Math.max(2, (width + height) / 350);
  context.lineCap = "round";
  shown.forEach((pose, index) => {
    context.strokeStyle = context.fillStyle = COLORS[index % COLORS.length];
    context.lineWidth = line;
    for (const [first, second] of info.edges) {
      const [a, b] = [pose.keypoints[first], pose.keypoints[second]];
      context.beginPath(); context.moveTo(a[0], a[1]); context.lineTo(b[0], b[1]); context.stroke();
    }
    for (const [x, y] of pose.keypoints) {
      context.beginPath(); context.arc(x, y, line, 0, 2 * Math.PI); context.fill();
    }
    const top = pose.keypoints.reduce((best, point) => (point[1] < best[1] ? point : best));
    context.font = `600 ${Math.max(11, 5 * line)}px system-ui, sans-serif`;
    context.fillText(pose.score.toFixed(2), top[0], Math.max(14, top[1] - 2 * line));
  });
  element("count").textContent = String(shown.length);
}

function say(text, isError = false) {
  element("status").textContent = text;
  element("status").classList.toggle("error", isError);
}

async function showFile(file) {
  if (!file) return;
  stopCamera();
  try {
    await show(await createImageBitmap(file));
  } catch {
    say(`${file.name} is not a picture that this browser reads.`, true);
  }
}

function stopCamera() {
  state.stream?.getTracks().forEach((track) => track.stop());
  state.stream = null;
  element("camera").textContent = "Webcam";
}

async function toggleCamera() {
  if (state.stream) return stopCamera();
  try {
    state.stream = await navigator.mediaDevices.getUserMedia({ video: true });
  } catch (error) {
    return say(`There is no webcam to use: ${error.message}`, true);
  }
  element("camera").textContent = "Stop";
  const video = Object.assign(document.createElement("video"), { srcObject: state.stream, muted: true, playsInline: true });
  await video.play();
  while (state.stream) {
    await show(video);
    await new Promise(requestAnimationFrame);
  }
}

const stage = element("stage");
for (const name of ["dragover", "dragleave", "drop"]) {
  stage.addEventListener(name, (event) => {
    event.preventDefault();
    stage.classList.toggle("over", name === "dragover");
    if (name === "drop") showFile(event.dataTransfer.files[0]);
  });
}
element("file").addEventListener("change", (event) => showFile(event.target.files[0]));
element("camera").addEventListener("click", toggleCamera);
element("threshold").addEventListener("input", (event) => {
  element("shown").textContent = Number(event.target.value).toFixed(2);
  draw();
});
for (const sample of info.samples) {
  const image = Object.assign(new Image(), { src: sample, alt: "Sample", tabIndex: 0 });
  image.addEventListener("click", () => { stopCamera(); show(sample); });
  element("samples").append(image);
}
