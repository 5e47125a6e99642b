// Which view is shown. It and the search are in the address, so that a reload comes back to the same place.

const sections = [...document.querySelectorAll("main > section")];
const tabs = [...document.querySelectorAll("nav a")];
const shownView = { name: "" };

/** `#results?q=fox&order=latest` */
function readAddress() {
  const [name, query] = location.hash.slice(1).split("?");
  return { name: sections.some((one) => one.id === name) ? name : "overview", query: new URLSearchParams(query || "") };
}

function writeAddress(name, values) {
  const query = new URLSearchParams(Object.entries(values).filter(([, value]) => value)).toString();
  history.replaceState(null, "", `#${name}${query ? `?${query}` : ""}`);
}

function showView(name, drawn) {
  shownView.name = name;
  for (const section of sections) section.hidden = section.id !== name;
  for (const tab of tabs) {
    const isShown = tab.hash === `#${name}`;
    tab.setAttribute("aria-selected", isShown);
    tab.tabIndex = isShown ? 0 : -1;
  }
  drawn?.(name);
}

document.querySelector("nav").addEventListener("keydown", (event) => {
  const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key], at = tabs.indexOf(document.activeElement);
  if (!by || at < 0) return;
  const next = tabs[(at + by + tabs.length) % tabs.length];
  next.focus();
  location.hash = next.hash;
});
