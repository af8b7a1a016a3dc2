import { defineConfig } from "vite";

// File names are fixed, so that a fresh build of the same sources can be compared with the one that is committed.
const names = { entryFileNames: "[name].js", chunkFileNames: "[name].js", assetFileNames: "[name][extname]" };

export default defineConfig({
  base: "/static/",
  build: {
    outDir: "../static",
    emptyOutDir: false,
    target: "es2022",
    modulePreload: false,
    cssCodeSplit: false,
    rolldownOptions: { input: { app: "src/app.ts" }, output: names, checks: { pluginTimings: false } },
  },
});
