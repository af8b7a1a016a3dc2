// The enrolment code as she types it: in capitals, in groups of four, and what is wrong with it in words.

const ALPHABET = "23456789ABCDEFGHJKMNPQRSTVWXYZ"; // as the registry issues codes: without what is easily misread
const LENGTH = 12;
const GROUP = 4;

const charactersOf = (typed: string): string[] => [...typed.normalize("NFC").replace(/[\s\-–—]/g, "").toUpperCase()];

/** The code in groups, with whatever else was typed. */
export function grouped(typed: string): string {
  const characters = charactersOf(typed);
  const groups = Array.from({ length: Math.ceil(characters.length / GROUP) }, (_, group) => characters.slice(group * GROUP, (group + 1) * GROUP).join(""));
  return groups.join("-");
}

/** What is wrong with a code, as the name of a text and its values; undefined if nothing is. */
export function faultOf(typed: string): { text: string; values: Record<string, string> } | undefined {
  const characters = charactersOf(typed);
  const wrong = [...new Set(characters.filter((character) => !ALPHABET.includes(character)))];
  if (wrong.length > 0) return { text: "code_wrong", values: { wrong: wrong.join(", ") } };
  if (characters.length !== LENGTH) return { text: "code_length", values: { count: String(characters.length) } };
  return undefined;
}
