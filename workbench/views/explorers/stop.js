// A button that stops what runs in the kernel. While a cell runs, a message from the page waits until it is over, so the
// click also interrupts the kernel, which waits for nothing; the kernel knows that the one was meant by the other.

function render({ model, el }) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "jupyter-widgets jupyter-button widget-button mod-danger workbench-stop";
  const kernel = () => model.widget_manager?.kernel ?? model.widget_manager?.context?.sessionContext?.session?.kernel;
  let asked = 0; // how often, for the run that trains now

  function show() {
    button.disabled = !model.get("running");
    if (button.disabled) asked = 0;
    button.textContent = asked ? "Stop at once" : "Stop";
    button.title = asked
      ? "Stopping after this step; once more interrupts at once"
      : "Stop after this step, with a checkpoint to go on from";
    button.setAttribute("aria-label", `${button.textContent}: ${button.title}`);
  }

  function next() {
    asked = 0;
    show();
  }

  button.addEventListener("click", () => {
    asked += 1;
    show();
    model.set("asked", model.get("running"));
    model.save_changes();
    kernel()?.interrupt();
  });
  model.on("change:running", next);
  show();
  el.append(button);
  return () => model.off("change:running", next);
}

export default { render };
