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

const preference = matchMedia("(prefers-color-scheme: dark)");
const dark = () => ({ true: false, false: true })[document.body.dataset.jpThemeLight] ?? preference.matches;

// The points that stand for something, in the order of the figure: those with customdata.
function* choices(box) {
  for (const [curveNumber, trace] of box.data.entries()) {
    if (trace.visible === false || trace.visible === "legendonly" || !trace.customdata) continue;
    for (let pointNumber = 0; pointNumber < trace.customdata.length; pointNumber++) yield { curveNumber, pointNumber };
  }
}

function render({ model, el }) {
  const box = document.createElement("div");
  box.className = "workbench-plot";
  box.tabIndex = 0;
  box.setAttribute("role", "img");
  el.append(box);
  let Plotly, place = -1, gone = false;

  async function draw() {
    if (!Plotly || gone) return;
    const started = performance.now();
    let text = model.get("_json");
    if (dark()) for (const [light, other] of model.get("_tones")) text = text.replaceAll(`"${light}"`, `"${other}"`);
    const { data, layout } = JSON.parse(text);
    box.style.height = `${layout.height ?? 450}px`;
    box.setAttribute("aria-label", model.get("description"));
    await Plotly.react(box, data, { ...layout, width: undefined, autosize: true }, { responsive: true, ...model.get("_config") });
    box.dataset.redrawMs = (performance.now() - started).toFixed(1);
    box.dataset.drawn = Number(box.dataset.drawn ?? 0) + 1;
  }

  function choose(curve, point) {
    const chosen = box.data[curve].customdata?.[point];
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
    if (step) Plotly.Fx.hover(box, [at]);
    else choose(at.curveNumber, at.pointNumber);
  }

  plotly(model).then(
    async (loaded) => {
      Plotly = loaded;
      await draw();
      if (!gone) box.on("plotly_click", ({ points: [point] }) => choose(point.curveNumber, point.pointNumber));
    },
    (error) => (box.textContent = `This plot needs its kernel: run the cell again. (${error.message})`),
  );
  const page = new MutationObserver(draw);
  page.observe(document.body, { attributeFilter: ["data-jp-theme-light"] });
  preference.addEventListener("change", draw);
  model.on("change:_json", draw);
  box.addEventListener("keydown", key);

  return () => {
    gone = true;
    page.disconnect();
    preference.removeEventListener("change", draw);
    model.off("change:_json", draw);
    Plotly?.purge(box);
  };
}

export default { render };
