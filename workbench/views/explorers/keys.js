// JupyterLab takes plain keys in a list for its own commands: an arrow leaves the cell, d twice deletes it.
const OURS = ({ key, ctrlKey, altKey, metaKey, shiftKey }) => !(ctrlKey || altKey || metaKey || (shiftKey && key === "Enter"));

function render({ el }) {
  let explorer, waiting;
  const keep = (event) => OURS(event) && event.stopPropagation();
  const attach = () => {
    explorer = el.closest(".workbench-explorer"); // there once the page has taken this view in
    if (explorer) explorer.addEventListener("keydown", keep);
    else waiting = requestAnimationFrame(attach);
  };
  attach();
  return () => {
    cancelAnimationFrame(waiting);
    explorer?.removeEventListener("keydown", keep);
  };
}

export default { render };
