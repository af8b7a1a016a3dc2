// The colours of theme.css for the map, whose layers can't name variables of a style sheet.

const VARIABLES = {
  sea: "--map-sea",
  land: "--map-land",
  town: "--map-town",
  district: "--map-district",
  province: "--map-province",
  label: "--map-label",
  halo: "--map-halo",
  street: "--map-street",
  mainStreet: "--map-main-street",
  water: "--map-water",
  building: "--map-building",
  ink: "--map-ink",
  paper: "--map-paper",
  wearer: "--map-wearer",
  protected: "--map-protected",
  unit: "--map-unit",
  ring: "--map-ring",
  old: "--map-unknown",
};

export type Palette = Record<keyof typeof VARIABLES, string>;

/** Returns the colours of the present theme, as `rgb(...)`. */
export function palette(): Palette {
  const probe = document.createElement("span");
  document.body.append(probe);
  const colors = Object.entries(VARIABLES).map(([name, variable]) => {
    probe.style.color = `var(${variable})`;
    return [name, getComputedStyle(probe).color];
  });
  probe.remove();
  return Object.fromEntries(colors) as Palette;
}

/** Calls a function when the system's theme changes. The page's own switch reloads the page. */
export function onThemeChange(changed: () => void): void {
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
}
