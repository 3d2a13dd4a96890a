// As lookup.c, by Node.js: `node lookup.js lookup STOP NAME...` by the C library, as `http` does it;
// `node lookup.js resolve4 STOP NAME...` by the c-ares inside, which knows no search domains.
const { existsSync } = require("fs");
const dns = require("dns").promises;
const [, , way, stop, ...names] = process.argv;

const ask = async (name) => (way === "lookup" ? (await dns.lookup(name)).address : (await dns.resolve4(name))[0]);

(async () => {
  while (!existsSync(stop)) {
    for (const name of names) {
      const at = Date.now();
      const start = process.hrtime.bigint();
      const address = await ask(name).catch((error) => `error-${error.code}`);
      const took = (process.hrtime.bigint() - start) / 1000n;
      process.stdout.write(`${at} ${name} ${took} ${address}\n`);
      await new Promise((done) => setTimeout(done, 20));
    }
  }
})();
