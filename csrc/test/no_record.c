/* All records are taken by what nobody answers: the loop waits, and goes on with the first that comes free. */
#include "fake.h"

#define SLOTS 4u

int main(void)
{
	struct rig r;
	struct fake_answer a;
	uint8_t *pages;
	uint32_t i;
	int fd;

	rig_new(&r, SLOTS, 0);
	atomic_store(&r.fake->most, SLOTS);
	pages = rig_object(&r, 1, 16 * NF_PAGE, false, &fd);
	CHECK(nf_core_start(r.core) == 0);
	for (i = 0; i < SLOTS; i++)
		ask(&r, i + 1, 1, i * NF_PAGE, NF_PAGE);
	for (i = 0; i < SLOTS; i++)
		CHECK(event_within(&r, PATIENCE_MS).type == NF_EV_MISS);
	ask(&r, 9, 1, 9 * NF_PAGE, NF_PAGE);
	CHECK(event_within(&r, SHORT_MS).type == 0);
	CHECK(nf_filled(r.core, 1, 2 * NF_PAGE, NF_PAGE) == 0);
	a = answer_within(&r, PATIENCE_MS);
	CHECK(a.unique == 3 && a.err == 0);
	CHECK(event_within(&r, PATIENCE_MS).off == 9 * NF_PAGE);
	rig_free(&r);
	free(pages);
	return 0;
}
