// Keys: Ctrl+Enter generates, Escape cancels.
document.addEventListener("keydown", (event) => {
  const press = (id) => document.querySelector(`#${id}`)?.click();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    document.activeElement?.blur(); // the text field hands its last letters over as it loses the focus
    setTimeout(() => press("generate"), 60);
  } else if (event.key === "Escape") {
    press("cancel");
  }
}, true);
