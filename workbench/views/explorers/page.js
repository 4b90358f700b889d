// What all views share: whether the page is dark, and to be told when that changes.
const preference = matchMedia("(prefers-color-scheme: dark)");
const dark = () => ({ true: false, false: true })[document.body.dataset.jpThemeLight] ?? preference.matches;

function onTone(draw) {
  const page = new MutationObserver(draw);
  page.observe(document.body, { attributeFilter: ["data-jp-theme-light"] });
  preference.addEventListener("change", draw);
  return () => {
    page.disconnect();
    preference.removeEventListener("change", draw);
  };
}
