"use strict";

const element = (id) => document.getElementById(id);
const NO_DATA = 255;
const MOST_ATTEMPTS = 5;
const FEW = 300; // pixels of an image's width up to which it is enlarged, so that each can be pointed at
const POINT = "Point at the image to see the class of a pixel.";

let models = [];
let files = [];
let at = 0; // which of the files is shown
let shown = null; // {file, width, height, picture, results: [{model, ids, confidence, classes, layer}]}
let field = null; // {x, y, layer, left, top}
let busy = ""; // added to what is said while the server has no place
let cursor = null; // {x, y}: the pixel that arrow keys have chosen
let border = 0.5; // where the second model begins, as a fraction of the width
let task = 0; // the number of the last request for predictions: answers to earlier ones are not shown

function say(text) {
  element("status").textContent = text;
}

/* A promise; meanwhile words, and how long it has taken so far. */
async function waiting(words, promise) {
  const began = Date.now();
  const tell = () => say(`${words}... ${Math.round((Date.now() - began) / 1000)} s${busy}`);
  say(`${words}...`);
  const clock = setInterval(tell, 1000);
  try {
    return await promise;
  } finally {
    clearInterval(clock);
    say("");
  }
}

function complain(text) {
  element("error").textContent = text;
  element("error").hidden = !text;
}

/* The token */

function readToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    sessionStorage.setItem("token", given);
    history.replaceState(null, "", location.pathname);
  }
}

function askForToken() {
  element("wrong").hidden = !sessionStorage.getItem("token");
  element("token").value = "";
  return new Promise((resolve) => {
    element("asking").addEventListener("close", () => {
      sessionStorage.setItem("token", element("token").value);
      resolve();
    }, { once: true });
    if (!element("asking").open) element("asking").showModal();
  });
}

/* Requests */

async function ask(path, body) {
  for (let attempt = 1; ; attempt++) {
    const token = sessionStorage.getItem("token");
    const headers = token ? { Authorization: `Bearer ${token}` } : {};
    const answer = await fetch(path, body ? { method: "POST", body, headers } : { headers });
    if (answer.ok) return answer.json();
    if (answer.status === 401) {
      await askForToken();
    } else if (answer.status === 503 && attempt < MOST_ATTEMPTS) {
      const seconds = Number(answer.headers.get("Retry-After")) || 1;
      busy = "; the server is busy and will be asked again";
      await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
      busy = "";
    } else {
      const problem = await answer.json().catch(() => ({}));
      throw new Error(problem.detail || `The server answered ${answer.status}.`);
    }
  }
}

async function predict(file, model, output) {
  const form = new FormData();
  form.append("files", file, file.name || "image");
  const found = await ask(`predict?model=${encodeURIComponent(model)}&output=${output}`, form);
  return found.images[0];
}

function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
}

async function inflated(base64) {
  const stream = new Blob([bytesOf(base64)]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/* Pictures */

function canvasOf(width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  return canvas;
}

function isOpaque(picture) {
  const context = canvasOf(picture.width, picture.height).getContext("2d");
  context.drawImage(picture, 0, 0);
  const { data } = context.getImageData(0, 0, picture.width, picture.height);
  for (let index = 3; index < data.length; index += 4) if (data[index] < 255) return false;
  return true;
}

/* The image at the size of its prediction: as the browser decodes it, or else as the server did. */
async function pictureOf(file, model, width, height) {
  try {
    const picture = await createImageBitmap(file);
    const fits = picture.width === width && picture.height === height;
    if (fits && (file.type === "image/jpeg" || isOpaque(picture))) return picture;
  } catch {
    // a kind that browsers do not know, such as TIFF
  }
  const found = await predict(file, model, "image");
  return createImageBitmap(new Blob([bytesOf(found.image)], { type: "image/png" }));
}

function layerOf(ids, classes, width, height) {
  const colors = new Uint8ClampedArray(4 * 256); // by id; what has no class stays clear
  for (const each of classes) colors.set([...each.color, 255], 4 * each.id);
  const [words, pixels] = [new Uint32Array(colors.buffer), new ImageData(width, height)];
  new Uint32Array(pixels.data.buffer).set(Uint32Array.from(ids, (id) => words[id]));
  const canvas = canvasOf(width, height);
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

/* From black and clear over red and yellow to white. */
function heatOf(values, width, height) {
  const pixels = new ImageData(width, height);
  values.forEach((value, index) => {
    pixels.data.set([Math.min(255, 3 * value), Math.min(255, Math.max(0, 3 * value - 255)),
      Math.max(0, 3 * value - 510), Math.min(255, 4 * value)], 4 * index);
  });
  const canvas = canvasOf(width, height);
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

function draw() {
  if (!shown) return;
  const canvas = element("view");
  const { width, height, picture, results } = shown;
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  element("stage").style.width = `min(100%, ${Math.max(2 * width, FEW)}px, ${75 * width / height}vh)`;
  canvas.classList.toggle("few", width < FEW);
  const context = canvas.getContext("2d");
  context.globalAlpha = 1;
  context.drawImage(picture, 0, 0, width, height);
  if (field) {
    drawField(context);
  } else {
    const middle = results.length > 1 ? Math.round(border * width) : width;
    context.globalAlpha = element("opacity").value / 100;
    const parts = [[0, middle], [middle, width - middle]];
    results.forEach((result, index) => {
      const [left, wide] = parts[index];
      if (wide) context.drawImage(result.layer, left, 0, wide, height, left, 0, wide, height);
    });
    context.globalAlpha = 1;
    if (cursor) drawCross(context, cursor);
  }
  placeDivider();
}

/* Whether a receptive field was measured in a part of the image. */
function isPart(layer) {
  return layer.width < shown.width || layer.height < shown.height;
}

function drawField(context) {
  context.fillStyle = "rgba(0, 0, 0, 0.65)";
  context.fillRect(0, 0, shown.width, shown.height);
  context.drawImage(field.layer, field.left, field.top);
  drawCross(context, field);
  if (isPart(field.layer)) context.strokeRect(field.left, field.top, field.layer.width, field.layer.height);
}

/* Around a pixel, which stays free. */
function drawCross(context, pixel) {
  const size = Math.max(shown.width, shown.height) / 60;
  context.strokeStyle = "#00e5ff";
  context.lineWidth = Math.max(1, size / 6);
  context.beginPath();
  for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
    context.moveTo(pixel.x + 0.5 + dx * size / 3, pixel.y + 0.5 + dy * size / 3);
    context.lineTo(pixel.x + 0.5 + dx * size, pixel.y + 0.5 + dy * size);
  }
  context.stroke();
}

function placeDivider() {
  const divider = element("divider");
  const two = shown.results.length > 1 && !field;
  divider.hidden = !two;
  divider.style.left = `${100 * border}%`;
  divider.setAttribute("aria-valuenow", String(Math.round(100 * border)));
  element("name-first").textContent = two ? shown.results[0].model : "";
  element("name-second").textContent = two ? shown.results[1].model : "";
}

/* The legends */

function percent(fraction) {
  return `${(100 * fraction).toFixed(1)} %`;
}

function row(color, name, share) {
  const line = document.createElement("tr");
  const [first, second] = [document.createElement("td"), document.createElement("td")];
  const swatch = document.createElement("span");
  swatch.className = "swatch";
  swatch.style.backgroundColor = `rgb(${color.join(",")})`;
  first.append(swatch, name);
  second.textContent = percent(share);
  line.append(first, second);
  return line;
}

function drawLegends() {
  const legends = element("legends");
  legends.replaceChildren();
  for (const result of shown.results) {
    const legend = element("legend").content.cloneNode(true);
    legend.querySelector("h2").textContent = result.model;
    const body = legend.querySelector("tbody");
    const classes = [...result.classes].sort((a, b) => b.share - a.share);
    for (const each of classes) body.append(row(each.color, each.name, each.share));
    const rest = 1 - classes.reduce((sum, each) => sum + each.share, 0);
    if (rest > 1e-9) body.append(row([224, 224, 224], "no data", rest));
    for (const button of legend.querySelectorAll("button")) {
      button.addEventListener("click", () => run(() => save(result.model, button.dataset.output)));
    }
    legends.append(legend);
  }
}

async function save(model, output) {
  const { file } = shown;
  const found = await waiting("Preparing the file", predict(file, model, output));
  const stem = (file.name || "image").replace(/\.[^.]*$/, "");
  if (output === "ids") {
    download(new Blob([bytesOf(found.ids)], { type: "image/png" }), `${stem}.png`);
  } else if (output === "rle") {
    const results = found.rle.map((each) => ({ image_id: stem, ...each }));
    download(new Blob([JSON.stringify(results)], { type: "application/json" }), `${stem}.coco_rle.json`);
  } else {
    const content = { image: found.file, width: found.width, height: found.height, polygons: found.polygons };
    download(new Blob([JSON.stringify(content)], { type: "application/json" }), `${stem}.polygons.json`);
  }
}

function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

/* What the pointer is at */

function pixelAt(event) {
  const box = element("view").getBoundingClientRect();
  const x = Math.floor((event.clientX - box.left) / box.width * shown.width);
  const y = Math.floor((event.clientY - box.top) / box.height * shown.height);
  const inside = x >= 0 && y >= 0 && x < shown.width && y < shown.height;
  return inside ? { x, y } : null;
}

function readOut(pixel) {
  if (!pixel || field) return;
  const index = pixel.y * shown.width + pixel.x;
  const texts = shown.results.map((result) => {
    const id = result.ids[index];
    const found = result.classes.find((each) => each.id === id);
    const sure = result.confidence && id !== NO_DATA ? ` (${Math.round(result.confidence[index] / 2.55)} % sure)` : "";
    const name = `${found ? found.name : "no data"}${sure}`;
    return shown.results.length > 1 ? `${result.model}: ${name}` : name;
  });
  element("readout").textContent = `x ${pixel.x}, y ${pixel.y}: ${texts.join(" | ")}`;
}

/* With a pointer a pixel is read out when it is reached, and with arrow keys, which go further with Shift. */
function pointAt(event) {
  if (!shown) return;
  if (cursor) {
    cursor = null;
    draw();
  }
  readOut(pixelAt(event));
}

function moveCursor(event) {
  const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (event.key === "Enter" && cursor) run(() => showField(cursor));
  if (!step || !shown) return;
  event.preventDefault();
  const { width, height } = shown;
  const far = event.shiftKey ? Math.ceil(Math.max(width, height) / 20) : 1;
  const { x, y } = cursor ?? { x: width >> 1, y: height >> 1 };
  cursor = { x: Math.min(width - 1, Math.max(0, x + far * step[0])), y: Math.min(height - 1, Math.max(0, y + far * step[1])) };
  field = null;
  readOut(cursor);
  draw();
}

async function showField(pixel) {
  if (!pixel || !element("field").checked) return;
  const right = shown.results.length > 1 && pixel.x >= border * shown.width && !field;
  const model = shown.results[right ? 1 : 0].model;
  const current = shown;
  const form = new FormData();
  form.append("file", current.file, current.file.name || "image");
  form.append("x", pixel.x);
  form.append("y", pixel.y);
  const asked = ask(`receptive_field?model=${encodeURIComponent(model)}`, form);
  const found = await waiting("Measuring the receptive field", asked);
  const values = await inflated(found.map);
  if (shown !== current || !element("field").checked) return;
  const layer = heatOf(values, found.width, found.height);
  field = { ...pixel, layer, left: found.x, top: found.y };
  const frame = isPart(layer) ? ` Only the ${found.width}x${found.height} pixels in the frame were measured.` : "";
  element("readout").textContent = `x ${pixel.x}, y ${pixel.y}: ${model} decides for ${found.name}; 95 % of the influence `
    + `is within ${found.size95}x${found.size95} pixels around it.${frame}`;
  draw();
}

/* From files to predictions */

function take(list) {
  const images = [...list].filter((file) => file.type.startsWith("image/") || /\.(tiff?|jp2|avif|webp|p[gnp]m)$/i.test(file.name));
  if (!images.length) {
    const [{ name }] = list;
    complain(`${name} is not an image; expected JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, JPEG 2000 or PNM.`);
    return;
  }
  files = images;
  at = 0;
  run(show);
}

/* Show the file at its place; what was shown before stays, faint, until there is an answer. */
async function show() {
  const number = ++task;
  const names = [element("first").value, element("second").value].filter((name) => name);
  element("browse").hidden = files.length < 2;
  element("place").textContent = `${at + 1} of ${files.length}: ${files[at].name}`;
  element("result").setAttribute("aria-busy", "true");
  try {
    const made = await waiting(`Segmenting ${files[at].name || "the image"}`, predictedBy(names, files[at]));
    if (number !== task) return;
    shown = made;
  } catch (error) {
    if (number !== task) return;
    element("result").hidden = true;
    shown = null;
    throw error;
  } finally {
    if (number === task) element("result").setAttribute("aria-busy", "false");
  }
  [field, cursor] = [null, null];
  element("result").hidden = false;
  element("readout").textContent = POINT;
  const able = models.filter((model) => names.includes(model.name)).every((model) => model.receptive_fields);
  element("seeing").hidden = !able;
  if (!able) element("field").checked = false;
  drawLegends();
  draw();
}

async function predictedBy(names, file) {
  const found = await Promise.all(names.map((name) => predict(file, name, "raw")));
  const { width, height } = found[0];
  const picture = await pictureOf(file, names[0], width, height);
  const results = await Promise.all(found.map(async (each, index) => {
    const ids = await inflated(each.raw.ids);
    const confidence = each.raw.confidence && await inflated(each.raw.confidence);
    const layer = layerOf(ids, each.classes, width, height);
    return { model: names[index], ids, confidence, classes: each.classes, layer };
  }));
  return { file, width, height, picture, results };
}

async function run(work) {
  complain("");
  try {
    await work();
  } catch (error) {
    complain(error instanceof TypeError ? "The server does not answer." : error.message);
  }
}

function turn(step) {
  at = (at + step + files.length) % files.length;
  run(show);
}

/* The camera: live where the browser allows it, else through the system's own. */

async function openCamera() {
  if (!navigator.mediaDevices) {
    element("shot").click();
    return;
  }
  try {
    const stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: 1280 } });
    element("video").srcObject = stream;
    element("taking").showModal();
  } catch {
    complain("The camera cannot be used; choose an image instead.");
  }
}

function closeCamera() {
  for (const track of element("video").srcObject?.getTracks() ?? []) track.stop();
  element("video").srcObject = null;
}

function takePicture() {
  const video = element("video");
  const canvas = canvasOf(video.videoWidth, video.videoHeight);
  canvas.getContext("2d").drawImage(video, 0, 0);
  element("taking").close();
  canvas.toBlob((blob) => take([new File([blob], "camera.png", { type: "image/png" })]), "image/png");
}

/* The divider */

function moveBorder(fraction) {
  border = Math.min(1, Math.max(0, fraction));
  draw();
}

function dragBorder(event) {
  if (!event.buttons) return;
  const box = element("view").getBoundingClientRect();
  moveBorder((event.clientX - box.left) / box.width);
}

/* The beginning */

function listen() {
  element("choose").addEventListener("click", () => element("files").click());
  for (const id of ["files", "shot"]) {
    element(id).addEventListener("change", (event) => {
      if (event.target.files.length) take(event.target.files);
      event.target.value = "";
    });
  }
  element("camera").addEventListener("click", openCamera);
  element("take").addEventListener("click", takePicture);
  element("cancel").addEventListener("click", () => element("taking").close());
  element("taking").addEventListener("close", closeCamera);
  document.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) take(event.clipboardData.files);
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    element("drop").classList.add("over");
  });
  document.addEventListener("dragleave", () => element("drop").classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    element("drop").classList.remove("over");
    if (event.dataTransfer.files.length) take(event.dataTransfer.files);
  });
  for (const id of ["first", "second"]) element(id).addEventListener("change", () => files.length && run(show));
  element("before").addEventListener("click", () => turn(-1));
  element("after").addEventListener("click", () => turn(1));
  element("opacity").addEventListener("input", () => {
    element("percent").textContent = `${element("opacity").value} %`;
    draw();
  });
  element("field").addEventListener("change", () => {
    field = null;
    element("readout").textContent = element("field").checked ? "Click a pixel of the image." : POINT;
    draw();
  });
  element("view").addEventListener("pointermove", pointAt);
  element("view").addEventListener("pointerdown", pointAt);
  element("view").addEventListener("click", (event) => shown && run(() => showField(pixelAt(event))));
  element("view").addEventListener("keydown", moveCursor);
  element("divider").addEventListener("pointerdown", (event) => event.target.setPointerCapture(event.pointerId));
  element("divider").addEventListener("pointermove", dragBorder);
  element("divider").addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -0.02, ArrowRight: 0.02 }[event.key];
    if (step) moveBorder(border + step);
  });
}

async function begin() {
  readToken();
  listen();
  models = (await ask("models")).models;
  const names = models.map((model) => model.name);
  element("first").replaceChildren(...names.map((name) => new Option(name)));
  element("second").replaceChildren(new Option("nothing", ""), ...names.map((name) => new Option(name)));
  element("compare").hidden = names.length < 2;
}

run(begin);
