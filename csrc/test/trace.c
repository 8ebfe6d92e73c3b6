/* Requests are recorded on demand, and what a reader crosses is told once. */
#include "fake.h"

int main(void)
{
	struct nf_trace_entry entries[8];
	struct rig r;
	uint8_t *pages, asked[1] = { 0 };
	int fd;

	rig_new(&r, 8, NF_NO_URING);
	pages = rig_object(&r, 1, 8 * NF_PAGE, true, &fd);
	CHECK(nf_object_watch(r.core, 1, asked) == 0 && nf_object_watch(r.core, 2, asked) == -ENOENT);
	CHECK(nf_object_mark(r.core, 1, 2 * NF_PAGE) == 0 && nf_object_mark(r.core, 2, 0) == -ENOENT);
	CHECK(nf_trace_enable(r.core, 2) == 0);
	CHECK(nf_core_start(r.core) == 0);
	for (uint32_t i = 1; i < 5; i++) {
		ask(&r, i, 1, i * NF_PAGE, NF_PAGE);
		CHECK(answer_within(&r, PATIENCE_MS).unique == i);
	}
	CHECK(event_within(&r, PATIENCE_MS).type == NF_EV_AHEAD && event_within(&r, 0).type == 0);
	CHECK(asked[0] == 0x1e);
	CHECK(nf_trace_read(r.core, entries, 8) == 2);
	CHECK(entries[0].off == NF_PAGE && entries[0].hit && entries[1].object == 1);
	CHECK(nf_trace_enable(r.core, 0) == 0 && nf_trace_read(r.core, entries, 8) == 0);
	rig_free(&r);
	free(pages);
	return 0;
}
