// Prints HashiCorp's own parse (its Go parser, compiled for Node) of each file named, as one JSON object.
const fs = require("fs");
const { parse } = require("@cdktf/hcl2json");

(async () => {
    const parsed = {};
    for (const path of process.argv.slice(2)) {
        parsed[path] = await parse(path, fs.readFileSync(path, "utf8"));
    }
    // The parser's runtime keeps the process alive.
    process.stdout.write(JSON.stringify(parsed), () => process.exit(0));
})().catch(error => {
    console.error(String(error));
    process.exit(1);
});
