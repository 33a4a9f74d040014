/* GET /dashboard: one page, dashboard.html as it was at build time; GET /dashboard/data[/N]: what it shows, as JSON,
 * with the history behind point N. Like /metrics both need no key: they name models, workers and figures, never users,
 * keys, prompts or outputs. The page may load nothing from anywhere and speak to nobody but its own gateway: its
 * Content-Security-Policy names the hashes of its own script and style, and nothing else runs.
 *
 * Loops of one process answer alike. Of several gateways behind one address each shows itself; the page begins anew
 * when another one answers. */
#ifndef BATON_GATEWAY_DASHBOARD_H
#define BATON_GATEWAY_DASHBOARD_H

#include "gateway/reply.h"

/* `rest`: what follows the path in the table of routes. */
void gw_dashboard_page(const gw_call *call, const char *rest);
void gw_dashboard_data(const gw_call *call, const char *rest); /* N, or nothing for all */

#endif
