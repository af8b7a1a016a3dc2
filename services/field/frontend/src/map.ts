// Her map: the region in which he may be now, as circles around her. No street map is fetched: each tile would tell its host where
// they both are. Nothing of it is kept on the phone.

import { type Circle, type Place, offset } from "./geo";
import { WayOut } from "./road";
import { Refused, call } from "./server";

const INTERVAL_MS = 15_000;
const RETRY_MS = 5_000;
const DRAW_MS = 1_000;
const HALF = 160; // half of the picture, in its own units
const MIN_SHOWN_M = 400;
const RINGS_M = [100, 300, 600, 1_000, 2_000, 5_000];
const TURNS: Record<string, number> = { north: 0, north_east: 45, east: 90, south_east: 135, south: 180, south_west: 225, west: 270, north_west: 315 };

interface FromHer {
  least_m: number;
  greatest_m: number;
  direction: string;
  way_out: string;
}

interface View {
  outcome: "shown" | "withheld" | "unknown";
  circles?: Circle[];
  grows_mps?: number;
  age_s?: number;
  unknown_in_s?: number;
  from_her?: FromHer;
}

interface Kept extends View {
  read_ms: number;
}

export class HerMap {
  private views: Kept[] = [];
  private failed = false;
  private running = false;
  private wakeUp: () => void = () => undefined;
  private drawn = "";
  private readonly wayOut = new WayOut();

  constructor(
    private readonly section: HTMLElement,
    private readonly t: (name: string) => string,
    private readonly place: () => Place | undefined,
  ) {
    document.addEventListener("visibilitychange", () => this.wake());
    setInterval(() => this.draw(), DRAW_MS);
  }

  // There is news of notices. The map asks until nothing is open any more.
  wake(): void {
    this.wakeUp();
    if (!this.running) void this.run();
  }

  // Texts in another language.
  translate(): void {
    this.drawn = "";
    this.draw();
  }

  private async run(): Promise<void> {
    this.running = true;
    try {
      let waitMs = 0;
      do {
        await this.pause(waitMs);
        waitMs = document.visibilityState === "visible" ? await this.read() : INTERVAL_MS;
        this.draw();
        const way = this.views.find((view) => view.from_her)?.from_her?.way_out ?? "";
        void this.wayOut.renew(this.place(), way).then(() => this.draw());
      } while (waitMs > 0);
    } finally {
      this.running = false;
    }
  }

  // Reads the views. Returns when to read again, 0 if nothing is open.
  private async read(): Promise<number> {
    try {
      const answer = await call<{ views: View[]; is_whole: boolean }>("GET", "/api/map");
      this.views = answer.views.map((view) => ({ ...view, read_ms: Date.now() }));
      this.failed = !answer.is_whole;
      return this.views.length > 0 || this.failed ? INTERVAL_MS : 0;
    } catch (error) {
      if (error instanceof Refused && error.status === 401) {
        this.views = [];
        this.failed = false;
        return 0;
      }
      if (error instanceof Refused && error.status === 429) return 1_000 * Math.max(1, error.waitS);
      // A picture that isn't renewed ages, and ends by itself.
      this.failed = true;
      return RETRY_MS;
    }
  }

  private pause(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, ms);
      this.wakeUp = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  private draw(): void {
    const now = Date.now();
    const shown = this.views.filter((view) => isCurrent(view, now));
    const open = this.views.length > 0;
    this.section.hidden = !open;
    const own = this.place();
    const circles = shown.flatMap((view) => grown(view, now));
    const way = own && shown[0]?.from_her ? this.wayOut.shown(own, circles) : [];
    const lines = [...this.lines(now), ...(way.length > 0 ? [this.t("map_road")] : [])];
    const drawn = JSON.stringify([lines, circles.map((circle) => [circle.lat, circle.lon, Math.round(circle.radius_m / 10)]), own, shown[0]?.from_her, way]);
    if (drawn === this.drawn) return;
    this.drawn = drawn;
    const said = this.section.querySelector("#map-said")!;
    said.replaceChildren(...lines.map((line) => Object.assign(document.createElement("p"), { textContent: line })));
    const picture = this.section.querySelector("#map-picture")!;
    picture.replaceChildren(...(circles.length > 0 ? [this.picture(circles, shown[0]!, way)] : []));
  }

  private lines(now: number): string[] {
    const lines = this.views.flatMap((view) => {
      if (view.outcome === "withheld") return [this.t("map_withheld")];
      return isCurrent(view, now) ? this.linesOf(view, now) : [this.t("map_unknown")];
    });
    return this.failed && this.views.length > 0 ? [...lines, this.t("map_failed")] : lines;
  }

  private linesOf(view: Kept, now: number): string[] {
    const age = this.t("map_age").replace("{age}", String(Math.round(ageOf(view, now) / 10) * 10));
    const from = view.from_her;
    if (!from) return [this.t("map_no_own_place"), age];
    const where = from.direction
      ? this.t("map_where").replace("{direction}", this.t(`to_${from.direction}`)).replace("{least}", String(from.least_m)).replace("{greatest}", String(from.greatest_m))
      : this.t("map_here").replace("{greatest}", String(from.greatest_m));
    return [where, this.t("map_way_out").replace("{direction}", this.t(`to_${from.way_out}`)), age];
  }

  private picture(circles: Circle[], view: Kept, way: Place[]): SVGElement {
    const own = this.place();
    const middle = own && view.from_her ? own : circles[0]!;
    const at = circles.map((circle) => offset(middle, circle));
    const reach = Math.max(MIN_SHOWN_M, ...circles.map((circle, i) => Math.hypot(...at[i]!) + circle.radius_m));
    const scale = (HALF - 10) / reach;
    const svg = element("svg", { viewBox: `${-HALF} ${-HALF} ${2 * HALF} ${2 * HALF}`, role: "img", "aria-label": this.t("map_picture") });
    const labels: SVGElement[] = []; // drawn last, so that no line hides them
    circles.forEach((circle, i) => svg.append(element("circle", { class: "region", cx: at[i]![0] * scale, cy: -at[i]![1] * scale, r: circle.radius_m * scale })));
    if (middle === own) {
      for (const ring of RINGS_M.filter((each) => each <= reach && each * scale > 18)) {
        svg.append(element("circle", { class: "ring", cx: 0, cy: 0, r: ring * scale }));
        labels.push(element("text", { class: "label", x: 0, y: ring * scale - 3 }, `${ring} m`));
      }
      const points = way.map((point) => offset(middle, point).map((m, i) => (i ? -m : m) * scale).join(" "));
      if (points.length > 0) svg.append(element("path", { class: "road", d: `M0 0 L${points.join(" L")}` }));
      const turn = TURNS[view.from_her?.way_out ?? ""];
      if (turn !== undefined) svg.append(element("path", { class: "way-out", d: "M0 -14 L0 -62 M-9 -50 L0 -64 L9 -50", transform: `rotate(${turn})` }));
      svg.append(element("circle", { class: "own", cx: 0, cy: 0, r: 7 }));
      labels.push(element("text", { class: "label own-label", x: 11, y: 5 }, this.t("map_you")));
    }
    labels.push(element("text", { class: "label north", x: 0, y: 14 - HALF }, this.t("map_north")));
    svg.append(...labels);
    return svg;
  }
}

// Whether a view still has a region: three minutes after its position nobody knows where he is.
function isCurrent(view: Kept, now: number): boolean {
  return view.outcome === "shown" && now - view.read_ms < 1_000 * (view.unknown_in_s ?? 0);
}

function ageOf(view: Kept, now: number): number {
  return (view.age_s ?? 0) + (now - view.read_ms) / 1_000;
}

// The circles of a view as they have grown since it was read.
function grown(view: Kept, now: number): Circle[] {
  const by = (view.grows_mps ?? 0) * ((now - view.read_ms) / 1_000);
  return (view.circles ?? []).map((circle) => ({ ...circle, radius_m: circle.radius_m + by }));
}

function element(name: string, attributes: Record<string, string | number>, text = ""): SVGElement {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, String(value));
  if (text) made.textContent = text;
  return made;
}
