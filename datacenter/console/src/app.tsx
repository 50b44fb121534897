// The frame around every page: who one is, where one can go, and which page the address names.

import {
  Button,
  Masthead,
  MastheadBrand,
  MastheadContent,
  MastheadMain,
  MastheadToggle,
  Nav,
  NavItem,
  NavList,
  Page,
  PageSidebar,
  PageSidebarBody,
  PageToggleButton,
  SkipToContent,
  ToggleGroup,
  ToggleGroupItem,
  Toolbar,
  ToolbarContent,
  ToolbarItem,
} from '@patternfly/react-core';
import SystemIcon from '@patternfly/react-icons/dist/esm/icons/adjust-icon';
import DarkIcon from '@patternfly/react-icons/dist/esm/icons/moon-icon';
import LightIcon from '@patternfly/react-icons/dist/esm/icons/sun-icon';
import type { ReactNode } from 'react';
import { useEffect } from 'react';

import { call } from './api/client';
import { useLook } from './api/poll';
import mark from './mark.svg';
import { AuditPage } from './pages/audit';
import { BranchPage } from './pages/branch';
import { DesktopsPage } from './pages/desktops';
import { ImagePage } from './pages/image';
import { ImagesPage } from './pages/images';
import { OperationPage } from './pages/operation';
import { OperationsPage } from './pages/operations';
import { OverviewPage } from './pages/overview';
import { SignInPage } from './pages/sign-in';
import { StorePage } from './pages/store';
import { VersionPage } from './pages/version';
import { VolumePage } from './pages/volume';
import { Mishap } from './parts/mishap';
import { Notices } from './parts/notices';
import { PageOf } from './parts/page';
import { Nothing } from './parts/seen';
import { BASE, follow, Link, match, usePlace } from './router';
import { signOut, useSession } from './session';
import type { Theme } from './theme';
import { useTheme } from './theme';

const MAIN = 'main';

/** Pages, by the pattern of their address. The key has a page of another thing begin anew. */
const PAGES: [pattern: string, page: (at: Record<string, string>) => ReactNode][] = [
  ['/', () => <OverviewPage />],
  ['/branches/:branch', ({ branch = '' }) => <BranchPage key={branch} name={branch} />],
  ['/images', () => <ImagesPage />],
  ['/images/:image', ({ image = '' }) => <ImagePage key={image} name={image} />],
  ['/images/:image/:number', ({ image = '', number = '' }) => <VersionPage key={`${image}@${number}`} image={image} number={number} />],
  ['/desktops', () => <DesktopsPage />],
  ['/volumes/:volume', ({ volume = '' }) => <VolumePage key={volume} id={volume} />],
  ['/operations', () => <OperationsPage />],
  ['/operations/:id', ({ id = '' }) => <OperationPage key={id} id={id} />],
  ['/store', () => <StorePage />],
  ['/audit', () => <AuditPage />],
];

const PLACES: [page: string, name: string, also: string[]][] = [
  ['/', 'Fleet', ['/branches']],
  ['/images', 'Images', []],
  ['/desktops', 'Desktops', ['/volumes']],
  ['/operations', 'Operations', []],
  ['/store', 'Store', []],
  ['/audit', 'Audit log', []],
];

function shown(place: string): ReactNode {
  for (const [pattern, page] of PAGES) {
    const at = match(pattern, place);
    if (at) return page(at);
  }
  return (
    <PageOf title="No such page">
      <Nothing title="There is no such page" action={<Link page="/">To the fleet</Link>}>
        Perhaps the address was cut short.
      </Nothing>
    </PageOf>
  );
}

function Themes() {
  const [theme, choose] = useTheme();
  const item = (is: Theme, label: string, icon: ReactNode) => (
    <ToggleGroupItem icon={icon} aria-label={label} buttonId={`theme-${is}`} isSelected={theme === is} onChange={() => choose(is)} />
  );
  return (
    <ToggleGroup aria-label="Light or dark" isCompact>
      {item('system', 'As the system', <SystemIcon />)}
      {item('light', 'Light', <LightIcon />)}
      {item('dark', 'Dark', <DarkIcon />)}
    </ToggleGroup>
  );
}

function Frame({ place }: { place: string }) {
  const status = useLook('status', (signal) => call('GET /v1/status', {}, signal), 30_000);
  const here = (page: string, also: string[]): boolean =>
    page === place || [...(page === '/' ? [] : [page]), ...also].some((each) => place.startsWith(`${each}/`));
  // A page begins at its top.
  useEffect(() => {
    document.getElementById(MAIN)?.scrollTo({ top: 0 });
  }, [place]);
  const masthead = (
    <Masthead>
      <MastheadMain>
        <MastheadToggle>
          <PageToggleButton isHamburgerButton aria-label="Navigation" />
        </MastheadToggle>
        <MastheadBrand>
          <Link page="/" className="splice-brand">
            <img src={mark} alt="" />
            Splice
          </Link>
        </MastheadBrand>
      </MastheadMain>
      <MastheadContent>
        <Toolbar>
          <ToolbarContent>
            {status.data && (
              <ToolbarItem className="splice-realm" alignSelf="center" visibility={{ default: 'hidden', md: 'visible' }}>
                {status.data.name}
              </ToolbarItem>
            )}
            <ToolbarItem align={{ default: 'alignEnd' }} alignSelf="center">
              <Themes />
            </ToolbarItem>
            <ToolbarItem alignSelf="center">
              <Button variant="link" onClick={() => signOut(() => call('POST /v1/log-out', {}))}>
                Sign out
              </Button>
            </ToolbarItem>
          </ToolbarContent>
        </Toolbar>
      </MastheadContent>
    </Masthead>
  );
  const sidebar = (
    <PageSidebar>
      <PageSidebarBody>
        <Nav aria-label="Pages">
          <NavList>
            {PLACES.map(([page, name, also]) => (
              <NavItem key={page} to={`${BASE}${page}`} isActive={here(page, also)} onClick={follow(page)}>
                {name}
              </NavItem>
            ))}
          </NavList>
        </Nav>
      </PageSidebarBody>
    </PageSidebar>
  );
  return (
    <Page
      masthead={masthead}
      sidebar={sidebar}
      isManagedSidebar
      isContentFilled
      mainContainerId={MAIN}
      skipToContent={<SkipToContent href={`#${MAIN}`}>Skip to content</SkipToContent>}
    >
      <Mishap key={place}>{shown(place)}</Mishap>
    </Page>
  );
}

export function App() {
  const session = useSession();
  const place = usePlace();
  return <Notices>{session.signedIn ? <Frame place={place} /> : <SignInPage ended={session.ended} />}</Notices>;
}
