// Node, asked whether it accepts what a server shows: HOST PORT CA-FILE.
import { readFileSync } from "node:fs";
import { connect } from "node:tls";

const [host, port, file] = process.argv.slice(2);
const ca = readFileSync(file, "utf8").split(/(?<=-----END CERTIFICATE-----\n)/).filter((text) => text.trim());
const socket = connect({ host: "127.0.0.1", port: Number(port), servername: host, ca, ALPNProtocols: ["http/1.1"] });
socket.setTimeout(20_000, () => {
  console.error("no answer");
  process.exit(2);
});
socket.on("error", (error) => {
  console.error(`certificate refused or worse: ${error.code} ${error.message}`);
  process.exit(error.code?.startsWith("E") && !error.code.startsWith("ERR_TLS") ? 2 : 1);
});
socket.on("secureConnect", () => process.exit(socket.authorized ? 0 : 1));
