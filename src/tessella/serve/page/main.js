/** Start the page with the server that it came from. */

import { ServerBackend } from "./api.js";
import { askToken } from "./requests.js";
import "./app.js";

document.querySelector("tessella-app").run(new ServerBackend(askToken));
