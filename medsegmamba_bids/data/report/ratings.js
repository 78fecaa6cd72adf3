// Ratings of the T1w images of one folder of results: kept by this browser, saved as a table that
// `medsegmamba ... group --ratings` reads.
const RATINGS = (() => {
  const key = `medsegmamba ratings ${location.pathname.replace(/[^/]*$/, "")}`;
  const read = (name, other) => { try { return JSON.parse(localStorage.getItem(name)) ?? other; } catch { return other; } };
  const write = (name, value) => { try { localStorage.setItem(name, JSON.stringify(value)); return true; } catch { return false; } };
  const all = () => read(key, {});
  const plain = (text) => String(text ?? "").replace(/\s+/g, " ").trim() || "n/a";
  const columns = ["participant", "session", "run", "rating", "note", "date", "rater", "scan"];
  return {
    all,
    rater: () => read("medsegmamba rater", ""),
    setRater: (name) => write("medsegmamba rater", name),
    // Returns whether it could be kept.
    set(scan, change) {
      const ratings = all(), now = { ...ratings[scan.scan], ...scan, ...change };
      now.date = new Date().toISOString().slice(0, 19);
      now.rater = this.rater();
      if (now.rating || now.note) ratings[scan.scan] = now; else delete ratings[scan.scan];
      return write(key, ratings);
    },
    save(only) {
      const rows = Object.values(all()).filter((row) => row.rating && (!only || only.includes(row.scan)));
      const lines = [columns, ...rows.map((row) => columns.map((name) => plain(row[name])))].map((line) => line.join("\t"));
      saveFile("ratings.tsv", lines.join("\n") + "\n");
    },
  };
})();
const saveFile = (name, text) => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/tab-separated-values" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
};
