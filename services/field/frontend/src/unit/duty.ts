// The unit's duty, as the server gives it, and its answers: each is kept until the leg has it or refuses it in words.

import { keep, setting } from "../kept";
import { Refused, call } from "../server";

export interface Task {
  assignment: string;
  incident: string;
  state: string;
  offer: number;
  kind: string;
  to: "wearer" | "person" | "place" | "other";
  subject: string;
  is_exercise: boolean;
  is_check: boolean;
  asked_ms: number | null;
  open_until_ms: number | null; // until when this unit may accept, while it is asked
  with_desk: boolean; // the desk has it while this unit is asked
  due_ms: number | null;
  arrival_due_ms: number | null;
  reminded_ms: number | null;
  distress_ms: number | null;
  one_scene_ms: number | null;
  spoofing_ms: number | null;
  panic_ms: number | null; // when a protected person last called for help
  panic_withdrawn_ms: number | null;
  travel_s: number | null;
  losing: boolean;
  flag: string;
  others: { leg: string; state: string; class: string; distress_ms: number | null }[];
}

export interface Duty {
  unit: string;
  class: string;
  leg: string;
  status: string;
  shift_until_ms: number;
  distress_ms: number | null;
  tasks: Task[];
  ends: { assignment: string; reason: string }[];
  calls: { own?: string; other?: string };
  away: boolean;
  digest: string;
  now_ms: number;
}

export interface Answer {
  assignment: string;
  offer: number;
  answer: string;
  reason?: string;
  cause?: string;
  note?: string;
}

const RETRY_MS = 3_000;
const MAX_KEPT = 50;

export class Answers {
  private kept: Answer[] = [];
  private sending = false;

  // `refused` says why an answer was refused; `changed` says that the number of waiting answers changed.
  constructor(
    private readonly refused: (code: string, answer: Answer) => void,
    private readonly changed: () => void,
  ) {}

  get waiting(): readonly Answer[] {
    return this.kept;
  }

  async begin(): Promise<void> {
    this.kept = (await setting<Answer[]>("answers")) ?? [];
    void this.send();
  }

  async give(answer: Answer): Promise<void> {
    const same = (each: Answer) => each.assignment === answer.assignment && each.answer === answer.answer && each.offer === answer.offer;
    if (this.kept.some(same)) return;
    this.kept = [...this.kept, answer].slice(-MAX_KEPT);
    await keep("answers", this.kept);
    this.changed();
    await this.send();
  }

  private async send(): Promise<void> {
    if (this.sending) return;
    this.sending = true;
    try {
      for (let first = this.kept[0]; first; first = this.kept[0]) {
        if (!(await this.isSettled(first))) await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
      }
    } finally {
      this.sending = false;
    }
  }

  private async isSettled(answer: Answer): Promise<boolean> {
    try {
      await call("POST", "/api/unit/answer", answer);
    } catch (error) {
      const isFinal = error instanceof Refused && error.status < 500 && error.status !== 408 && error.status !== 429;
      if (!isFinal) return false;
      this.refused(error.code, answer);
    }
    this.kept = this.kept.filter((each) => each !== answer);
    await keep("answers", this.kept);
    this.changed();
    return true;
  }
}
