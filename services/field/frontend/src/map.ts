// Her map: the region in which he may be now, as circles around her. No street map is fetched: each tile would tell its host where
// they both are. Nothing of it is kept on the phone.

import { type Circle, type Place, offset } from "./geo";
import { keep, setting } from "./kept";
import { WayOut } from "./road";
import { type Instruction, Refused, call } from "./server";

const INTERVAL_MS = 15_000;
const MIN_INTERVAL_MS = 11_000; // a region leaves for a phone at most each 10 s, whatever makes the page ask
const RETRY_MS = 5_000;
const DRAW_MS = 1_000;
const HALF = 160; // half of the picture, in its own units
const LABEL_HALF = 31; // half of a label's width
const LABEL_HIGH = 20;
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
  private said = "";
  private readonly wayOut = new WayOut();

  constructor(
    private readonly section: HTMLElement,
    private readonly t: (name: string) => string,
    private readonly place: () => Place | undefined,
    private readonly instruction: () => Instruction | undefined,
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
        waitMs = document.visibilityState === "visible" ? await this.waitMs() : INTERVAL_MS;
        if (waitMs > 0) continue;
        waitMs = await this.read();
        this.draw();
        const way = this.leads() ? (this.views.find((view) => view.from_her)?.from_her?.way_out ?? "") : "";
        void this.wayOut.renew(this.place(), way).then(() => this.draw());
      } while (waitMs > 0);
    } finally {
      this.running = false;
    }
  }

  // How long it is too soon for another region, milliseconds. An earlier page of this phone may have had the last one.
  private async waitMs(): Promise<number> {
    const agoMs = Date.now() - ((await setting<number>("map_read_ms")) ?? 0);
    return agoMs < 0 ? 0 : Math.max(0, MIN_INTERVAL_MS - agoMs); // a clock that was set back says nothing
  }

  // Reads the views. Returns when to read again, 0 if nothing is open.
  private async read(): Promise<number> {
    try {
      const answer = await call<{ views: View[]; is_whole: boolean }>("GET", "/api/map");
      this.views = answer.views.map((view) => ({ ...view, read_ms: Date.now() }));
      this.failed = !answer.is_whole;
      if (this.views.some((view) => view.outcome === "shown")) await keep("map_read_ms", Date.now());
      return this.views.length > 0 || this.failed ? INTERVAL_MS : 0;
    } catch (error) {
      if (error instanceof Refused && error.status === 401) {
        this.views = [];
        this.failed = false;
        return 0;
      }
      // A picture that isn't renewed ages, and ends by itself.
      this.failed = true;
      if (error instanceof Refused) return Math.max(RETRY_MS, 1_000 * error.waitS);
      await keep("map_read_ms", Date.now()); // a region may have left, and was lost on its way
      return RETRY_MS;
    }
  }

  // Whether the instruction on the screen lets her go away from him. An arrow beside "stay inside" would lead her out.
  private leads(): boolean {
    return this.instruction()?.allows_way_out === true;
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

  /** Draws the map below the instruction, and nothing without one: it belongs to a notice that is open and confirmed. */
  draw(): void {
    const now = Date.now();
    const instruction = this.instruction();
    const isOpen = this.views.length > 0 && instruction !== undefined && !instruction.is_over;
    const shown = isOpen ? this.views.filter((view) => isCurrent(view, now)) : [];
    const own = this.place();
    const circles = shown.flatMap((view) => grown(view, now));
    const way = own && shown[0]?.from_her && this.leads() ? this.wayOut.shown(own, circles) : [];
    const lines = isOpen ? [...this.lines(now), ...(way.length > 0 ? [this.t("map_road")] : [])] : [];
    const ages = shown.map((view) => this.t("map_age").replace("{age}", String(Math.round(ageOf(view, now) / 10) * 10)));
    const drawn = JSON.stringify([isOpen, lines, ages, circles.map((circle) => [circle.lat, circle.lon, Math.round(circle.radius_m / 10)]), own, shown[0]?.from_her, way]);
    if (drawn === this.drawn) return;
    this.drawn = drawn;
    this.section.hidden = !isOpen;
    this.section.querySelector<HTMLElement>("#map-region")!.hidden = circles.length === 0;
    // A screen reader says the lines when they change. An age changes by itself, and isn't said.
    if (lines.join("\n") !== this.said) this.section.querySelector("#map-said")!.replaceChildren(...lines.map(paragraph));
    this.said = lines.join("\n");
    this.section.querySelector("#map-ages")!.replaceChildren(...ages.map(paragraph));
    const picture = this.section.querySelector("#map-picture")!;
    picture.replaceChildren(...(circles.length > 0 ? [this.picture(circles, shown[0]!, way)] : []));
  }

  private lines(now: number): string[] {
    const lines = this.views.flatMap((view) => {
      if (view.outcome === "withheld") return [this.t("map_withheld")];
      return isCurrent(view, now) ? this.linesOf(view) : [this.t("map_unknown")];
    });
    return this.failed && this.views.length > 0 ? [...lines, this.t("map_failed")] : lines;
  }

  private linesOf(view: Kept): string[] {
    const from = view.from_her;
    if (!from) return [this.t("map_no_own_place")];
    const where = from.direction
      ? this.t("map_where").replace("{direction}", this.t(`to_${from.direction}`)).replace("{least}", String(from.least_m)).replace("{greatest}", String(from.greatest_m))
      : this.t("map_here").replace("{greatest}", String(from.greatest_m));
    const wayOut = this.leads() ? [this.t("map_way_out").replace("{direction}", this.t(`to_${from.way_out}`))] : [];
    return [where, ...wayOut];
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
      const turn = this.leads() ? TURNS[view.from_her?.way_out ?? ""] : undefined;
      const placed: { x: number; y: number }[] = [];
      for (const ring of RINGS_M.filter((each) => each <= reach && each * scale > 28)) {
        svg.append(element("circle", { class: "ring", cx: 0, cy: 0, r: ring * scale }));
        const place = nextToWay(ring * scale, turn);
        if (placed.some(({ x, y }) => Math.abs(x - place.x) < 2 * LABEL_HALF && Math.abs(y - place.y) < LABEL_HIGH)) continue;
        placed.push(place);
        labels.push(element("text", { class: "label", ...place }, `${ring} m`));
      }
      const points = way.map((point) => offset(middle, point).map((m, i) => (i ? -m : m) * scale).join(" "));
      if (points.length > 0) svg.append(element("path", { class: "road", d: `M0 0 L${points.join(" L")}` }));
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

const paragraph = (textContent: string): HTMLElement => Object.assign(document.createElement("p"), { textContent });

// Where a ring's label is: square to the way out, on the left or below, and within the picture.
function nextToWay(radius: number, turn = 90): { x: number; y: number } {
  const [east, south] = [90, -90].map((by) => ((turn + by) * Math.PI) / 180).map((angle) => [Math.sin(angle), -Math.cos(angle)] as const).sort(([x1, y1], [x2, y2]) => Math.round(10 * (x1 - x2)) || y2 - y1)[0]!;
  return { x: Math.max(radius * east, LABEL_HALF - HALF), y: radius * south - 3 };
}

function element(name: string, attributes: Record<string, string | number>, text = ""): SVGElement {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, String(value));
  if (text) made.textContent = text;
  return made;
}
