() => {
  // a picture dropped anywhere on the page goes to the field for pictures
  for (const kind of ["dragover", "drop"]) {
    document.addEventListener(kind, (event) => {
      if (!event.dataTransfer || ![...event.dataTransfer.types].includes("Files")) return;
      event.preventDefault();
      if (kind === "dragover") return;
      event.stopPropagation();
      const field = document.querySelector("#restore input[type=file]");
      if (!field) return;
      field.files = event.dataTransfer.files;
      field.dispatchEvent(new Event("change", { bubbles: true }));
    }, true);
  }
}
