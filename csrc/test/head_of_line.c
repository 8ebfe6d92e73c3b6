/*
 * An image that hangs has more requests than there are records: what another has is still
 * answered at once, and the hung one's oldest pay for it.
 */
#include "fake.h"

#define SLOTS 64u

int main(void)
{
	uint8_t *hung, *also_hung, *good;
	struct fake_answer a;
	uint32_t i, denied = 0;
	struct rig r;
	int fds[3];

	rig_new(&r, SLOTS, 0);
	hung = rig_object(&r, 1, 1024 * NF_PAGE, false, &fds[0]);
	also_hung = rig_object(&r, 2, 1024 * NF_PAGE, false, &fds[1]);
	good = rig_object(&r, 3, 16 * NF_PAGE, true, &fds[2]);
	CHECK(nf_core_start(r.core) == 0);
	for (i = 1; i <= 4 * SLOTS; i++) {
		ask(&r, i, i % 3 ? 1 : 2, i * NF_PAGE, NF_PAGE);
		CHECK(event_within(&r, PATIENCE_MS).type == NF_EV_MISS);
	}
	ask(&r, 1000, 3, 0, NF_PAGE);
	do {
		a = answer_within(&r, PATIENCE_MS);
		CHECK(a.unique);
		if (a.unique != 1000) {
			CHECK(a.err == EIO);
			denied++;
		}
	} while (a.unique != 1000);
	CHECK(a.err == 0);
	/* no more than must: seven records of eight may wait */
	CHECK(denied == 4 * SLOTS - (SLOTS - SLOTS / 8));
	CHECK(nf_expire(r.core, 0, EIO) == (int)(SLOTS - SLOTS / 8));
	rig_free(&r);
	free(hung);
	free(also_hung);
	free(good);
	return 0;
}
