// Draws the plotly figure that the kernel hands over as JSON, in the tones of the page, and tells which point was chosen.
// plotly.js comes from one widget that all plots of a kernel share, so that a page gets it once.

const SHELF = Symbol.for("workbench.plotly");

async function load(model) {
  const library = await model.widget_manager.get_model(model.get("_library").replace("IPY_MODEL_", ""));
  const packed = new Blob([library.get("source")]).stream().pipeThrough(new DecompressionStream("gzip"));
  const parts = ["const module = { exports: {} }, exports = module.exports;\n", await new Response(packed).blob()];
  const script = new Blob([...parts, "\nexport default module.exports;"], { type: "text/javascript" });
  const url = URL.createObjectURL(script);
  try {
    return (await import(url)).default;
  } finally {
    URL.revokeObjectURL(url);
  }
}

function plotly(model) {
  globalThis[SHELF] ??= load(model).catch((error) => {
    delete globalThis[SHELF]; // the next plot tries again
    throw error;
  });
  return globalThis[SHELF];
}

// The points that stand for something, in the order of the figure: those with customdata, each value where it is first.
function* choices(box) {
  const seen = new Set();
  for (const [curveNumber, trace] of box.data.entries()) {
    if (trace.visible === false || trace.visible === "legendonly" || !trace.customdata) continue;
    for (const [pointNumber, value] of trace.customdata.entries()) {
      if (!seen.has(value)) yield { curveNumber, pointNumber };
      seen.add(value);
    }
  }
}

function render({ model, el }) {
  const box = document.createElement("div");
  box.className = "workbench-plot";
  box.tabIndex = 0;
  box.setAttribute("role", "img");
  el.append(box);
  let Plotly, place = -1, gone = false, shapes = [], own = 0, seen = {};

  function toned(text) {
    if (dark()) for (const [light, other] of model.get("_tones")) text = text.replaceAll(`"${light}"`, `"${other}"`);
    return JSON.parse(text);
  }

  const drawn = (started) => {
    box.dataset.redrawMs = (performance.now() - started).toFixed(1);
    box.dataset.drawn = Number(box.dataset.drawn ?? 0) + 1;
  };

  async function draw() {
    if (!Plotly || gone) return;
    const started = performance.now();
    seen = { text: model.get("_json"), over: model.get("over") };
    const { data, layout } = toned(seen.text);
    own = data.length;
    data.push(...toned(JSON.stringify(seen.over)));
    shapes = layout.shapes ?? [];
    layout.shapes = [...shapes, ...toned(JSON.stringify(model.get("marks")))];
    box.style.height = `${layout.height ?? 450}px`;
    box.setAttribute("aria-label", model.get("description"));
    await Plotly.react(box, data, { ...layout, width: undefined, autosize: true }, { responsive: true, ...model.get("_config") });
    drawn(started);
  }

  // Of traces that have changed all else can be left as it is drawn, which takes a third of the time.
  async function lift() {
    const over = model.get("over");
    if (!Plotly || gone || !box.data || model.get("_json") !== seen.text || over === seen.over) return; // drawn whole
    if (over.length !== seen.over.length) return draw();
    const started = performance.now();
    seen.over = over;
    const at_once = { mode: "immediate", transition: { duration: 0 }, frame: { duration: 0, redraw: false } };
    const traces = over.map((_, number) => own + number);
    await Plotly.animate(box, { data: toned(JSON.stringify(over)), traces }, at_once).catch(() => {}); // overtaken by the next
    drawn(started);
  }

  async function mark() {
    if (!Plotly || gone || !box.data) return;
    const started = performance.now();
    await Plotly.relayout(box, { shapes: [...shapes, ...toned(JSON.stringify(model.get("marks")))] });
    drawn(started);
  }

  function choose(curve, point, place = undefined) {
    const chosen = box.data[curve].customdata?.[point] ?? place;
    if (chosen === undefined) return;
    model.set("chosen", { value: chosen, times: (model.get("chosen")?.times ?? 0) + 1 });
    model.save_changes();
  }

  function key(event) {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!Plotly || (!step && event.key !== "Enter")) return;
    event.preventDefault();
    event.stopPropagation(); // the notebook listens to arrows and Enter too
    const points = [...choices(box)];
    if (!points.length) return;
    if (step) place = (Math.max(place, step > 0 ? -1 : 0) + step + points.length) % points.length;
    const at = points[Math.min(Math.max(place, 0), points.length - 1)];
    const { xaxis = "x", yaxis = "y" } = box.data[at.curveNumber];
    if (step) Plotly.Fx.hover(box, [at], xaxis + yaxis);
    else choose(at.curveNumber, at.pointNumber);
  }

  plotly(model).then(
    async (loaded) => {
      Plotly = loaded;
      await draw();
      const cell = ({ data, x, y }) => (data.type === "heatmap" ? [y, x] : undefined);
      if (!gone) box.on("plotly_click", ({ points: [point] }) => choose(point.curveNumber, point.pointNumber, cell(point)));
    },
    (error) => (box.textContent = `This plot needs its kernel: run the cell again. (${error.message})`),
  );
  const stop = onTone(draw);
  model.on("change:_json", draw);
  model.on("change:marks", mark);
  model.on("change:over", lift);
  box.addEventListener("keydown", key);

  return () => {
    gone = true;
    stop();
    model.off("change:_json", draw);
    model.off("change:marks", mark);
    model.off("change:over", lift);
    Plotly?.purge(box);
  };
}

export default { render };
