/* A successor takes up what was open, answers each once, and leaves nothing on record. */
#include "fake.h"

int main(void)
{
	struct rig r;
	struct fake_answer a;
	uint8_t *pages[3];
	uint32_t seen = 0;
	int fd, i;

	rig_new(&r, 8, 0);
	pages[0] = rig_object(&r, 1, 16 * NF_PAGE, false, &fd);
	CHECK(nf_core_start(r.core) == 0);
	ask(&r, 1, 1, 0, NF_PAGE);
	ask(&r, 2, 1, NF_PAGE, NF_PAGE);
	ask(&r, 3, 1, 2 * NF_PAGE, NF_PAGE);
	for (i = 0; i < 3; i++)
		CHECK(event_within(&r, PATIENCE_MS).type == NF_EV_MISS);
	rig_reborn(&r);
	/* one came between the stop and the start */
	ask(&r, 4, 2, 0, NF_PAGE);
	CHECK(nf_object_add(r.core, 1, 0, 0, fd, 16 * NF_PAGE, pages[0], 0) == 0);
	pages[1] = rig_object(&r, 2, NF_PAGE, true, &fd);
	pages[0][0] |= 1;
	CHECK(nf_core_settle(r.core, 1) == 3);
	a = answer_within(&r, PATIENCE_MS);
	CHECK(a.unique == 1 && a.err == 0);
	CHECK(answer_within(&r, SHORT_MS).unique == 0);
	CHECK(nf_core_start(r.core) == 0);
	a = answer_within(&r, PATIENCE_MS);
	CHECK(a.unique == 4 && a.err == 0);
	CHECK(nf_filled(r.core, 1, 0, 4 * NF_PAGE) == 0);
	for (i = 0; i < 2; i++) {
		a = answer_within(&r, PATIENCE_MS);
		CHECK(a.err == 0);
		seen |= 1u << a.unique;
	}
	CHECK(seen == (1u << 2 | 1u << 3));
	rig_reborn(&r);
	CHECK(nf_core_settle(r.core, 1) == 0);
	rig_free(&r);
	free(pages[0]);
	free(pages[1]);
	return 0;
}
