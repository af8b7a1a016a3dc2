// The first drawing of a map, unseen. A layer's program is compiled when the layer is first drawn. That takes a computer without a graphics
// processor a second in all, which has to be over before the first alert comes.

import type { GeoJSONSource, Map as MapLibre } from "maplibre-gl";
import type { LonLat } from "./geo";

/** Zoom at which all layers but those of an overview are drawn. */
const NEAR_ZOOM = 15;
/** Maximum time for each of the two views, in ms: a hidden tab draws nothing, and an operator's tiles may not come. */
const VIEW_MS = 5_000;

/** Draws samples near a point and from afar, then removes them and shows the map as it was. */
export async function warmUp(map: MapLibre, at: LonLat, samples: Record<string, GeoJSON.Feature[]>): Promise<void> {
  const canvas = map.getCanvas();
  const overview = { center: map.getCenter(), zoom: map.getZoom() };
  canvas.style.visibility = "hidden";
  const set = (features: (source: string) => GeoJSON.Feature[]): void => {
    for (const id of Object.keys(samples)) {
      void map.getSource<GeoJSONSource>(id)?.setData({ type: "FeatureCollection", features: features(id) });
    }
  };
  set((id) => samples[id] ?? []);
  for (const view of [{ center: at, zoom: NEAR_ZOOM }, overview]) {
    map.jumpTo(view);
    await drawn(map);
  }
  set(() => []);
  canvas.style.visibility = "";
}

/** Resolves once the map has drawn all that it loads. */
function drawn(map: MapLibre): Promise<void> {
  return new Promise((resolve) => {
    map.once("idle", () => resolve());
    setTimeout(resolve, VIEW_MS);
  });
}
