import { defineConfig } from "vite";

// The calendar that takes her app's place. It opens without a network by files of its own.
export default defineConfig({
  base: "/static/",
  publicDir: false,
  build: {
    outDir: "../static",
    emptyOutDir: false,
    target: "es2022",
    modulePreload: false,
    cssCodeSplit: false,
    rolldownOptions: {
      input: { calendar: "src/calendar.ts" },
      output: { entryFileNames: "[name].js", assetFileNames: "calendar[extname]" },
      checks: { pluginTimings: false },
    },
  },
});
