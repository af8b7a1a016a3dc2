// A head-end: node head_end.js PROTOS ADDRESS TOKEN DEVICE
//
// Sends one batch, prints each response as a line of JSON, sends a receipt for each command, and ends its stream with its input.

import * as grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

const [protos, address, token, device] = process.argv.slice(2);
const definition = loadSync("tandem/ingest/v1/ingest.proto", {
  includeDirs: [protos],
  keepCase: true,
  longs: String,
  enums: String,
  arrays: true,
});
const { IngestService } = grpc.loadPackageDefinition(definition).tandem.ingest.v1;

const metadata = new grpc.Metadata();
metadata.set("authorization", `Bearer ${token}`);
const stream = new IngestService(address, grpc.credentials.createInsecure()).Report(metadata);

function timestamp(date) {
  const ms = date.getTime();
  return { seconds: Math.floor(ms / 1000), nanos: (ms % 1000) * 1e6 };
}

function position(reportId, changes) {
  return {
    device_id: device,
    report_id: reportId,
    fix_time: timestamp(new Date()),
    lat_deg: 37.5,
    lon_deg: 127.0,
    accuracy_m: 5,
    ...changes,
  };
}

let batch = 0;
function send(request) {
  batch += 1;
  stream.write({ batch, ...request });
}

stream.on("data", (response) => {
  console.log(JSON.stringify(response));
  if (response.commands.length) {
    send({ receipts: response.commands.map(({ command_id, device_id }) => ({ command_id, device_id })) });
  }
});
stream.on("error", (error) => {
  console.log(JSON.stringify({ code: grpc.status[error.code], details: error.details }));
  process.exitCode = 1;
});
process.stdin.on("end", () => stream.end()).resume();

send({
  positions: [
    position("good"),
    position("north-of-the-pole", { lat_deg: 91 }),
    position("no-device", { device_id: "nobody" }),
  ],
  equipment: [{ device_id: device, report_id: "strap", event: "STRAP_CLOSED", event_time: timestamp(new Date()) }],
});
