// The colours of theme.css for the map, whose layers can't name variables of a style sheet.

import type { LayerSpecification, Map as MapLibre } from "maplibre-gl";

/** Computes a variable's colour in the present theme, as `rgb(...)`. */
function themeColor(variable: string): string {
  const probe = document.createElement("span");
  probe.style.color = `var(${variable})`;
  document.body.append(probe);
  const { color } = getComputedStyle(probe);
  probe.remove();
  return color;
}

/** Returns a copy in which each text such as `--map-ink` is that variable's colour, also within expressions. */
export function themed<T>(value: T): T {
  if (typeof value === "string") return (value.startsWith("--") ? themeColor(value) : value) as T;
  if (Array.isArray(value)) return value.map(themed) as T;
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, part]) => [key, themed(part)])) as T;
}

/** Adds a layer whose colours are variables of theme.css, such as `"circle-color": "--map-wearer"`. */
export function addThemedLayer(map: MapLibre, layer: LayerSpecification): void {
  map.addLayer(themed(layer));
  followTheme(map, layer);
}

/** Paints a layer in the new colours when the browser's preference changes. A chosen theme changes with the page alone. */
export function followTheme(map: MapLibre, layer: LayerSpecification): void {
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    if (!map.getLayer(layer.id)) return;
    for (const [property, value] of Object.entries(layer.paint ?? {})) map.setPaintProperty(layer.id, property as never, themed(value) as never);
  });
}
