/*
 * A question whose object nobody had looked up, and 50,000 objects: it is answered when it is
 * present in all of them, without recursion, in a time that follows their number.
 */
#include "fake.h"

#include <time.h>

#define COUNT 50000u

int main(void)
{
	static uint8_t there = 1, lacking;
	struct timespec begin, end;
	struct rig r;
	struct fake_answer a;
	uint32_t id;

	rig_new(&r, 8, 0);
	/* killed between the read and the look-up */
	for (id = 1; id <= 3; id++)
		*(struct fake_ask *)nf_transport_record(r.fake, id) =
			(struct fake_ask){ 1, id, 0, 0, id == 3 ? 1 << 20 : 0, NF_PAGE };
	rig_reborn(&r);
	clock_gettime(CLOCK_MONOTONIC, &begin);
	for (id = 1; id <= COUNT; id++)
		CHECK(nf_object_add(r.core, id, 1, id, -1, NF_PAGE, id == 777 ? &lacking : &there, 0) == 0);
	CHECK(nf_core_settle(r.core, 1) == 3);
	/* behind the end of all that is served: an error */
	a = answer_within(&r, PATIENCE_MS);
	CHECK(a.unique == 3 && a.err == EIO);
	/* told once of the page that both wait for */
	CHECK(event_within(&r, PATIENCE_MS).object == 777);
	CHECK(event_within(&r, 0).type == 0);
	CHECK(answer_within(&r, 0).unique == 0);
	CHECK(nf_filled(r.core, 777, 0, NF_PAGE) == 0);
	for (id = 1; id <= 2; id++) {
		a = answer_within(&r, PATIENCE_MS);
		CHECK(a.unique && a.err == 0);
	}
	clock_gettime(CLOCK_MONOTONIC, &end);
	CHECK(end.tv_sec - begin.tv_sec < 60);
	rig_free(&r);
	return 0;
}
