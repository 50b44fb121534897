// All long work, the newest first, with its progress while it runs.

import { useOperations } from '../api/looks';
import { many } from '../model/units';
import { Box } from '../parts/facts';
import { OperationList } from '../parts/operations';
import { PageOf } from '../parts/page';
import { Seen } from '../parts/seen';

export function OperationsPage() {
  const look = useOperations();
  const running = look.data?.filter((one) => one.state === 'running').length;
  return (
    <PageOf title="Operations" about={running === undefined ? undefined : running === 0 ? 'Nothing runs.' : `${many(running, 'operation runs', 'operations run')}.`}>
      <Seen look={look}>
        {(operations) => (
          <Box title="Operations" flush>
            <OperationList operations={operations} />
          </Box>
        )}
      </Seen>
    </PageOf>
  );
}
