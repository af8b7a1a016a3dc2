// Places and circles on a map of some kilometres, on which a plane does.

const M_PER_DEGREE = 111_195;

export interface Place {
  lat: number;
  lon: number;
}

export interface Circle extends Place {
  radius_m: number;
}

/** Offset from one place to another: east and north, metres. */
export function offset(from: Place, to: Place): [number, number] {
  return [(to.lon - from.lon) * M_PER_DEGREE * Math.cos((from.lat * Math.PI) / 180), (to.lat - from.lat) * M_PER_DEGREE];
}

/** Distance from a place to the nearest circle's edge, metres; negative inside of it. */
export function distanceToEdge(place: Place, circles: Circle[]): number {
  return Math.min(...circles.map((circle) => Math.hypot(...offset(place, circle)) - circle.radius_m));
}
