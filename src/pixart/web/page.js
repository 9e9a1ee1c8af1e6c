// What only the browser can do: know its tab, keep the fields, listen to keys, take a dropped picture.
window.pixart = (() => {
  const SETTINGS = "pixart-settings", TAB = "pixart-tab", THEME = "pixart-theme";
  const LONGEST = 100000; // characters of the fields that are kept

  // Storage may be forbidden, full or broken: then nothing is kept, and the page works all the same.
  const read = (store, key) => { try { return store.getItem(key); } catch { return null; } };
  const write = (store, key, value) => { try { store.setItem(key, value); return true; } catch { return false; } };
  const local = () => { try { return window.localStorage; } catch { return null; } };
  const session = () => { try { return window.sessionStorage; } catch { return null; } };

  // One name per browser tab, which a reload keeps.
  let name = null;
  function tab() {
    name = name || (session() && read(session(), TAB));
    if (!/^[0-9a-f]{32}$/.test(name || "")) {
      name = Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
      if (session()) write(session(), TAB, name);
    }
    return name;
  }

  const stored = () => (local() && read(local(), SETTINGS)) || "";

  let timer = null;
  function keep(names, values) {
    clearTimeout(timer);
    timer = setTimeout(() => {
      const text = JSON.stringify(Object.fromEntries(names.map((key, i) => [key, values[i]])));
      if (local() && text.length <= LONGEST) write(local(), SETTINGS, text);
    }, 150);
    return [];
  }

  const press = (id) => {
    const button = document.querySelector(`button#${id}, #${id} button`);
    if (button && !button.disabled) button.click();
  };

  // Keys mean the tab that is open: the glass box has buttons of its own.
  const open = (id) => { const button = document.querySelector(`#${id}`); return !!button && button.offsetParent !== null; };
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      // The text field hands its last letters over as it loses the focus.
      setTimeout(() => press(open("glass-go") ? "glass-go" : "draw"), 60);
    } else if (event.key === "Escape") {
      press(open("glass-stop") ? "glass-stop" : "cancel");
    }
  }, true);

  // On a phone the pictures come below all fields: go there when something is drawn.
  document.addEventListener("click", (event) => {
    if (innerWidth < 700 && event.target.closest && event.target.closest("#draw, #draw-grid")) {
      const stage = document.querySelector("#stage");
      if (stage) setTimeout(() => stage.scrollIntoView({ behavior: "smooth" }), 200);
    }
  });

  document.addEventListener("click", (event) => {
    if (!event.target.closest || !event.target.closest(".px-theme")) return;
    const dark = document.body.classList.toggle("dark");
    if (local()) write(local(), THEME, dark ? "dark" : "light");
  });

  // A picture may be dropped anywhere; it goes the way of one that is dropped on its field.
  const hasFiles = (event) => event.dataTransfer && Array.from(event.dataTransfer.types).includes("Files");
  document.addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    document.body.classList.add("px-dragging");
  });
  const calm = () => document.body.classList.remove("px-dragging");
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) calm(); });
  document.addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    calm();
    event.preventDefault();
    event.stopPropagation();
    const input = document.querySelector("#from-picture input[type=file]");
    if (!input || !event.dataTransfer.files.length) return;
    const one = new DataTransfer();
    one.items.add(event.dataTransfer.files[0]);
    input.files = one.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  }, true);

  // The person's last choice of light or dark, else the system's.
  const apply = () => {
    const theme = local() && read(local(), THEME);
    if (theme && document.body) document.body.classList.toggle("dark", theme === "dark");
  };
  // Gradio sets its own theme while it mounts, which may be before or after this script runs.
  for (const wait of [0, 300, 1000, 3000]) setTimeout(apply, wait);

  return { tab, stored, keep, press: (id) => setTimeout(() => press(id), 300) };
})();
