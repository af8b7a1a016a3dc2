// Colours of the map in the light and the dark theme. The page's own colours are in theme.css.

export interface Palette {
  sea: string;
  land: string;
  town: string;
  district: string;
  province: string;
  label: string;
  halo: string;
  street: string;
  mainStreet: string;
  water: string;
  building: string;
  ink: string;
  paper: string;
  wearer: string;
  protected: string;
  unit: string;
  old: string;
}

const LIGHT: Palette = {
  sea: "#d6e4ee",
  land: "#f6f8fa",
  town: "#d3dae3",
  district: "#aab7c6",
  province: "#75869b",
  label: "#46566b",
  halo: "#f6f8fa",
  street: "#c3ccd6",
  mainStreet: "#e0b25c",
  water: "#bcd6e8",
  building: "#e3e7ec",
  ink: "#1b2733",
  paper: "#ffffff",
  wearer: "#c0392b",
  protected: "#0b6e4f",
  unit: "#0b4f9e",
  old: "#8793a0",
};
const DARK: Palette = {
  sea: "#0c1721",
  land: "#18232e",
  town: "#2c3a48",
  district: "#46586a",
  province: "#6b8095",
  label: "#a9b8c8",
  halo: "#18232e",
  street: "#3c4a59",
  mainStreet: "#8a6d34",
  water: "#17344a",
  building: "#223040",
  ink: "#eef3f8",
  paper: "#101a24",
  wearer: "#ff7b6b",
  protected: "#4fd3a5",
  unit: "#7db8ff",
  old: "#93a1b0",
};

const system = matchMedia("(prefers-color-scheme: dark)");

/** Returns the colours of the page's theme: the chosen one, or the system's. */
export function palette(): Palette {
  const theme = document.documentElement.dataset["theme"];
  return theme === "dark" || (theme !== "light" && system.matches) ? DARK : LIGHT;
}

/** Calls a function when the system's theme changes. The page's own switch reloads the page. */
export function onThemeChange(changed: () => void): void {
  system.addEventListener("change", changed);
}
