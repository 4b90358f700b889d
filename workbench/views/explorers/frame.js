// Arrows over the protected plane in a frame of three axes, on a canvas: dragging or the arrow keys turn it.
// A turntable: the frame turns about its third axis and is tilted, so that this axis is always drawn upright.

const TURN = Math.PI / 36, STEEP = Math.PI / 2 - 0.02;
const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
const dot = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);

// Rows: the screen's right, its up, and towards the viewer.
function turned(yaw, pitch) {
  const [c, s, C, S] = [Math.cos(yaw), Math.sin(yaw), Math.cos(pitch), Math.sin(pitch)];
  return [[c, s, 0], [-s * S, c * S, C], [s * C, -c * C, S]];
}

// A projection of the frame to the middle of width × height, at a scale that turning does not change.
function projection(model, width, height) {
  const rows = turned(model.get("yaw"), model.get("pitch"));
  const ranges = model.get("ranges");
  const middle = ranges.map(([low, high]) => (low + high) / 2);
  const radius = Math.hypot(...ranges.map(([low, high]) => (high - low) / 2));
  const scale = Math.min(width / 2 - 44, height / 2 - 6) / (0.86 * radius);
  return (v) => {
    const [x, y, depth] = rows.map((row) => scale * (dot(row, v) - dot(row, middle)));
    return [width / 2 + x, height / 2 - y, depth];
  };
}

function line(pen, from, to, colour, width, dash = []) {
  pen.strokeStyle = colour;
  pen.lineWidth = width;
  pen.setLineDash(dash);
  pen.beginPath();
  pen.moveTo(from[0], from[1]);
  pen.lineTo(to[0], to[1]);
  pen.stroke();
  pen.setLineDash([]);
}

function arrow(pen, from, to, colour) {
  const [x, y] = [to[0] - from[0], to[1] - from[1]];
  const length = Math.hypot(x, y), head = Math.min(13, length);
  pen.fillStyle = colour;
  pen.beginPath();
  if (length < 3) {
    pen.arc(to[0], to[1], 4, 0, 2 * Math.PI); // it points at the viewer, or has no length
  } else {
    const [u, v] = [x / length, y / length];
    line(pen, from, [to[0] - 0.8 * head * u, to[1] - 0.8 * head * v], colour, 3.5);
    pen.beginPath();
    pen.moveTo(to[0], to[1]);
    for (const side of [1, -1]) pen.lineTo(to[0] - head * u + side * 0.45 * head * v, to[1] - head * v - side * 0.45 * head * u);
  }
  pen.fill();
}

function plane(pen, place, [[left, right], [near, far]], tones) {
  const corners = [[left, near], [right, near], [right, far], [left, far]].map(([x, y]) => place([x, y, 0]));
  pen.fillStyle = tones.neutral;
  pen.globalAlpha = 0.14;
  pen.beginPath();
  corners.forEach(([x, y], i) => (i ? pen.lineTo(x, y) : pen.moveTo(x, y)));
  pen.fill();
  pen.globalAlpha = 0.45;
  const ticks = (low, high) => Array.from({ length: Math.floor(high * 4) - Math.ceil(low * 4) + 1 }, (_, i) => (Math.ceil(low * 4) + i) / 4);
  for (const x of ticks(left, right)) line(pen, place([x, near, 0]), place([x, far, 0]), tones.neutral, 0.7);
  for (const y of ticks(near, far)) line(pen, place([left, y, 0]), place([right, y, 0]), tones.neutral, 0.7);
  pen.globalAlpha = 1;
}

function write(pen, text, x, y, colour, tones, align = "left") {
  pen.textAlign = align;
  pen.lineWidth = 4;
  pen.lineJoin = "round";
  pen.strokeStyle = tones.page;
  pen.strokeText(text, x, y);
  pen.fillStyle = colour;
  pen.fillText(text, x, y);
}

// Labels beside the tips, away from the origin, each moved down as far as it would lie on one above it.
function labels(pen, arrows, origin, width, height, tones) {
  const taken = [];
  for (const { name, colour, at } of [...arrows].sort((a, b) => a.at[1] - b.at[1])) {
    const wide = pen.measureText(name).width, right = at[0] > origin[0] + 8;
    const leftwards = right ? at[0] + 10 + wide > width - 4 : at[0] - 10 - wide > 4;
    const x = leftwards ? Math.max(at[0] - 10, wide + 4) : at[0] + 10;
    const [start, end] = leftwards ? [x - wide, x] : [x, x + wide];
    let y = Math.max(at[1], 10);
    for (const box of taken) if (start < box.end + 6 && end > box.start - 6 && y < box.y + 17 && y > box.y - 17) y = box.y + 17;
    taken.push({ start, end, y });
    write(pen, name, x, Math.min(y, height - 10), colour, tones, leftwards ? "right" : "left");
  }
}

function paint(canvas, model, tones, [width, height]) {
  const ratio = globalThis.devicePixelRatio || 1;
  [canvas.width, canvas.height] = [Math.round(width * ratio), Math.round(height * ratio)];
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  pen.fillStyle = tones.page;
  pen.fillRect(0, 0, width, height);
  pen.lineCap = "round";
  pen.textBaseline = "middle";
  pen.font = `13px ${tones.font}`;

  const place = projection(model, width, height), ranges = model.get("ranges"), origin = place([0, 0, 0]);
  const stretch = model.get("stretch"), above = Math.sin(model.get("pitch")) >= 0 ? 1 : -1;
  const arrows = model.get("_arrows").map((one) => {
    const [x, y, z] = [one.tip[0] * stretch, one.tip[1] * stretch, one.tip[2]];
    return { ...one, at: place([x, y, z]), foot: place([x, y, 0]), side: z * above };
  });
  // All arrows begin in one point, so that the depth of their tips orders them; the plane parts them in two.
  arrows.sort((a, b) => a.at[2] - b.at[2]);
  const draw = ({ at, foot, colour }) => {
    line(pen, at, foot, colour, 1.2, [2, 4]);
    arrow(pen, origin, at, colour);
  };
  arrows.filter(({ side }) => side < 0).forEach(draw);
  plane(pen, place, ranges, tones);
  const points = { origin };
  model.get("axes").forEach((name, i) => {
    const end = ranges[i][1], unit = [0, 0, 0];
    unit[i] = end;
    points[name] = place(unit);
    line(pen, origin, points[name], tones.neutral, 1.4);
    unit[i] = end * 1.1;
    const title = stretch !== 1 && i < 2 ? `${name} (×${stretch})` : name;
    write(pen, title, ...place(unit).slice(0, 2), tones.ink, tones, "center");
  });
  arrows.filter(({ side }) => side >= 0).forEach(draw);
  labels(pen, arrows, origin, width, height, tones);
  for (const { name, at } of arrows) points[name] = at;
  return points;
}

// The same in words: it can be read aloud and copied, and it is text, whatever a name holds.
function list(legend, model) {
  const axes = model.get("axes");
  legend.replaceChildren(
    ...model.get("_arrows").map(({ name, tip, colour }) => {
      const item = document.createElement("li"), swatch = document.createElement("span");
      swatch.style.background = colour;
      item.append(swatch, `${name}: ${tip.map((value, i) => `${axes[i]} ${value.toFixed(3)}`).join(", ")}`);
      return item;
    }),
  );
}

function save(canvas, name) {
  canvas.toBlob((picture) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(picture);
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
}

function render({ model, el }) {
  const box = document.createElement("div"), title = document.createElement("div"), canvas = document.createElement("canvas");
  const tools = document.createElement("div"), legend = document.createElement("ul");
  box.className = "workbench-frame";
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "img");
  for (const [text, act] of [["Turn back", home], ["Save PNG", () => save(canvas, "frame.png")]]) {
    const button = document.createElement("button");
    button.textContent = text;
    button.className = "jupyter-button";
    button.addEventListener("click", act);
    tools.append(button);
  }
  title.className = "workbench-frame-title";
  box.append(title, canvas, legend, tools);
  el.append(box);

  let room = null;
  function draw() {
    // Where the page has no room for it, as while a theme is exchanged, it is drawn as large as it was.
    if (canvas.clientWidth) room = [canvas.clientWidth, canvas.clientHeight];
    if (!room) return; // not on the page yet
    const started = performance.now();
    const tones = Object.fromEntries(Object.entries(model.get("_tones")).map(([name, pair]) => [name, pair[+dark()]]));
    canvas.dataset.points = JSON.stringify(paint(canvas, model, tones, room));
    title.textContent = model.get("title");
    canvas.setAttribute("aria-label", `${model.get("title")}: ${model.get("description")}`);
    canvas.title = "Drag, or use the arrow keys, to turn it";
    list(legend, model);
    canvas.dataset.redrawMs = (performance.now() - started).toFixed(1);
    canvas.dataset.drawn = Number(canvas.dataset.drawn ?? 0) + 1;
  }

  function turn(yaw, pitch) {
    model.set("yaw", yaw % (2 * Math.PI));
    model.set("pitch", Math.min(Math.max(pitch, -STEEP), STEEP));
  }

  function home() {
    turn(...model.get("_home"));
    model.save_changes();
  }

  function key(event) {
    if (event.key !== "Home" && !KEYS[event.key]) return;
    event.preventDefault();
    event.stopPropagation(); // the notebook listens to arrows too
    if (event.key === "Home") return home();
    const [right, up] = KEYS[event.key];
    turn(model.get("yaw") + right * TURN, model.get("pitch") + up * TURN);
    model.save_changes();
  }

  let last = null; // where the pointer was
  canvas.addEventListener("pointerdown", (event) => {
    last = [event.clientX, event.clientY];
    canvas.setPointerCapture(event.pointerId);
    canvas.focus();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!last) return;
    turn(model.get("yaw") - 0.01 * (event.clientX - last[0]), model.get("pitch") + 0.01 * (event.clientY - last[1]));
    last = [event.clientX, event.clientY];
  });
  for (const end of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(end, () => {
      last = null;
      model.save_changes();
    });
  }
  canvas.addEventListener("keydown", key);

  const seen = ["_arrows", "yaw", "pitch", "stretch", "ranges", "axes", "title"];
  for (const name of seen) model.on(`change:${name}`, draw);
  const stop = onTone(draw), size = new ResizeObserver(draw);
  size.observe(canvas);
  draw();
  return () => {
    for (const name of seen) model.off(`change:${name}`, draw);
    stop();
    size.disconnect();
  };
}

export default { render };
