// Keys: Ctrl+Enter generates, Escape cancels.
document.addEventListener("keydown", (event) => {
  const press = (id) => document.querySelector(`#${id}`)?.click();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    const field = document.activeElement;
    field?.blur(); // the text field hands its last letters over as it loses the focus
    setTimeout(() => { press("generate"); field?.focus(); }, 60);
  } else if (event.key === "Escape" && document.querySelector("#status [data-state=running]")) {
    press("cancel");
  }
}, true);
